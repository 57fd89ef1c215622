// The kernels compiled for AVX512. System headers come first: nothing of theirs may be compiled for
// an instruction set that the machine might lack.
#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(                                                             \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2")
#endif

#include "simd_avx512.h"

#include "bodies.h"

namespace fused_dropout {

const Kernels& avx512_kernels() {
  static const Kernels kernels = make_kernels("avx512");
  return kernels;
}

}  // namespace fused_dropout

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
