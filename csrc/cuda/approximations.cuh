// The special functions of a GPU's hardware, an instruction each: of floats, where subnormal
// numbers count as 0. What stands beside them bounds their errors (PTX ISA, "Floating Point
// Instructions"); the emulator's model errs by as much.
#pragma once

#include "compat.h"

#if !defined(__CUDACC__)
#include "approximation_models.h"
#else

namespace fused_dropout {

// 2^x: 2^-22 of the result.
FUSED_DROPOUT_DEVICE float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The logarithm of x to base 2: 2^-22 where 1/2 < x < 2, else 2^-22 of the result.
FUSED_DROPOUT_DEVICE float log2_approx(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 1 / x: 2^-23 of the result.
FUSED_DROPOUT_DEVICE float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 1 / sqrt(x): 2^-22.9 of the result.
FUSED_DROPOUT_DEVICE float reciprocal_root_approx(float x) {
  float result;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace fused_dropout

#endif
