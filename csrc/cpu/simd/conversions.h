// Vectors and rows of a storage type in and out of the `Real`s that the kernels compute with.
// Narrowing rounds to nearest even.
#pragma once

#include "scalar_types.h"

namespace fused_dropout {
namespace {

FUSED_DROPOUT_INLINE Vec<float> widen_vector(const float* in) { return load(in); }
FUSED_DROPOUT_INLINE Vec<double> widen_vector(const double* in) { return load(in); }
FUSED_DROPOUT_INLINE Vec<float> widen_vector(const BFloat16* in) {
  return load_bfloat(reinterpret_cast<const uint16_t*>(in));
}
FUSED_DROPOUT_INLINE Vec<float> widen_vector(const Float16* in) {
  return load_half(reinterpret_cast<const uint16_t*>(in));
}

FUSED_DROPOUT_INLINE void narrow_vector(Vec<float> in, float* out) { store(out, in); }
FUSED_DROPOUT_INLINE void narrow_vector(Vec<double> in, double* out) { store(out, in); }
FUSED_DROPOUT_INLINE void narrow_vector(Vec<float> in, BFloat16* out) {
  store_bfloat(reinterpret_cast<uint16_t*>(out), in);
}
FUSED_DROPOUT_INLINE void narrow_vector(Vec<float> in, Float16* out) {
  store_half(reinterpret_cast<uint16_t*>(out), in);
}

template <class T>
FUSED_DROPOUT_INLINE void widen_row(const T* in, int64_t stride, int64_t count, Real<T>* out) {
  constexpr int kLanes = Vec<Real<T>>::kLanes;
  int64_t k = 0;
  if (stride == 1) {
    for (; k + kLanes <= count; k += kLanes) store(out + k, widen_vector(in + k));
  }
  for (; k < count; ++k) out[k] = widen(in[k * stride]);
}

// Contiguous.
template <class T>
FUSED_DROPOUT_INLINE void narrow_row(const Real<T>* in, int64_t count, T* out) {
  constexpr int kLanes = Vec<Real<T>>::kLanes;
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) narrow_vector(load(in + k), out + k);
  for (; k < count; ++k) narrow(in[k], out + k);
}

}  // namespace
}  // namespace fused_dropout
