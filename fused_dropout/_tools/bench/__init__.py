"""`fused-dropout bench`, and what the scripts of bench/ share."""
