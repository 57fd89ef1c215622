"""The emulator that runs CUDA kernels on a CPU; see README.md."""
