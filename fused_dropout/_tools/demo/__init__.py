"""`fused-dropout demo`: a small network trained with naive DropConnect and with ours."""
