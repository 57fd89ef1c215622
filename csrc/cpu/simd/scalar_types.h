// Storage types of the kernels. Arithmetic is done in `Real`: float, or double for double.
#pragma once

#include "../../common/float_formats.h"
#include "prelude.h"

namespace fused_dropout {
namespace {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// `a` where `condition` holds, else `b`. With ?: the compiler would move the computation of a float
// into a branch, and then not make vectors of the loop around it.
FUSED_DROPOUT_INLINE float select(bool condition, float a, float b) {
  const uint32_t from_a = condition ? ~0u : 0u;
  return float_from_bits((bits_from_float(a) & from_a) | (bits_from_float(b) & ~from_a));
}
FUSED_DROPOUT_INLINE double select(bool condition, double a, double b) { return condition ? a : b; }

template <class T>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <class T>
using Real = typename RealOf<T>::type;

FUSED_DROPOUT_INLINE float widen(float x) { return x; }
FUSED_DROPOUT_INLINE double widen(double x) { return x; }
FUSED_DROPOUT_INLINE float widen(BFloat16 x) { return bfloat_to_float(x.bits); }
FUSED_DROPOUT_INLINE float widen(Float16 x) { return half_to_float(x.bits); }

FUSED_DROPOUT_INLINE void narrow(float x, float* out) { *out = x; }
FUSED_DROPOUT_INLINE void narrow(double x, double* out) { *out = x; }
FUSED_DROPOUT_INLINE void narrow(float x, BFloat16* out) { out->bits = float_to_bfloat(x); }
FUSED_DROPOUT_INLINE void narrow(float x, Float16* out) { out->bits = float_to_half(x); }

}  // namespace
}  // namespace fused_dropout
