// Rows of a storage type in and out of the `Real`s that the kernels compute with.
#pragma once

#include "scalar_types.h"

namespace fused_dropout {
namespace {

template <class T>
FUSED_DROPOUT_INLINE void widen_row(const T* in, int64_t stride, int64_t count, Real<T>* out) {
  if (stride == 1) {
    for (int64_t k = 0; k < count; ++k) out[k] = widen(in[k]);
  } else {
    for (int64_t k = 0; k < count; ++k) out[k] = widen(in[k * stride]);
  }
}

// fp16 has conversion instructions; an overload, since it is the only type that wants them.
FUSED_DROPOUT_INLINE void widen_row(const Float16* in, int64_t stride, int64_t count, float* out) {
  int64_t k = 0;
  if (stride == 1) {
    constexpr int kLanes = Vec<float>::kLanes;
    const uint16_t* bits = reinterpret_cast<const uint16_t*>(in);
    for (; k + kLanes <= count; k += kLanes) store(out + k, load_half(bits + k));
  }
  for (; k < count; ++k) out[k] = widen(in[k * stride]);
}

// Contiguous, to nearest even.
template <class T>
FUSED_DROPOUT_INLINE void narrow_row(const Real<T>* in, int64_t count, T* out) {
  for (int64_t k = 0; k < count; ++k) narrow(in[k], out + k);
}

FUSED_DROPOUT_INLINE void narrow_row(const float* in, int64_t count, Float16* out) {
  constexpr int kLanes = Vec<float>::kLanes;
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    store_half(reinterpret_cast<uint16_t*>(out + k), load(in + k));
  }
  for (; k < count; ++k) narrow(in[k], out + k);
}

}  // namespace
}  // namespace fused_dropout
