"""The CPU kernels in a library without torch, emulated or not; see README.md."""
