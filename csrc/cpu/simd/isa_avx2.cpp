// The kernels compiled for AVX2.
#include "prelude.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif

namespace fused_dropout {
constexpr Isa kIsa = Isa::kAvx2;
}

#include "kernels_for.h"
#include "vectors_avx2.h"

#include "group_masks_avx2.h"

#include "vectors.h"  // after the operations that it describes

#include "simd_ops.h"  // written by setup.py: all files of ops/

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
