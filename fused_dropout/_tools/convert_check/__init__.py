"""`fused-dropout convert-check`: a model before and after fused_dropout.replace."""
