// The qualifiers that let one header serve the host compilers and nvcc.
#pragma once

#if defined(__CUDACC__)
#define FUSED_DROPOUT_INLINE static __host__ __device__ __forceinline__
#else
// `static`: every translation unit keeps its own copy. The bodies in csrc/cpu are compiled once per
// instruction set, and a copy made for AVX-512 must never be merged into code for a plain CPU.
#define FUSED_DROPOUT_INLINE static inline __attribute__((always_inline, unused))
#endif
