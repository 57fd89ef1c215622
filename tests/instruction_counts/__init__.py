"""How many instructions the CPU kernels take; see README.md."""
