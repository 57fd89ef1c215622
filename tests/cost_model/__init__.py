"""The cost model of the CUDA kernels, bench/kernel_model; see README.md there."""
