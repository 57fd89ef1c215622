"""The interpreter that runs the PTX of CUDA kernels on a CPU; see README.md."""
