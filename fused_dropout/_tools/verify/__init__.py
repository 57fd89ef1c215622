"""`fused-dropout verify`: every op against the reference, in checks with bounds of their own."""
