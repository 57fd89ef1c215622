// Elements in registers as they are in memory. A kernel that loads long before it computes keeps
// them so: they take few registers, and nothing waits for them to be widened.
#pragma once

#include <type_traits>

#include "../common/float_formats.h"
#include "elements.cuh"

namespace fused_dropout {
namespace {

template <class T, int kCount>
struct RawElements {
  static constexpr int kBytes = sizeof(T) * kCount;
  static constexpr int kWords = (kBytes + 3) / 4;
  uint32_t word[kWords];

  FUSED_DROPOUT_DEVICE void set(const T (&element)[kCount]) {
    word[kWords - 1] = 0;
    __builtin_memcpy(word, element, kBytes);
  }

  FUSED_DROPOUT_DEVICE void widen_to(Real<T>* x) const {
    if constexpr (std::is_same_v<T, __nv_bfloat16> && kCount % 2 == 0) {  // one instruction each
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        x[2 * w] = float_from_bits(word[w] << 16);
        x[2 * w + 1] = float_from_bits(word[w] & 0xFFFF0000);
      }
    } else {
      T element[kCount];
      __builtin_memcpy(element, word, kBytes);
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = widen(element[i]);
    }
  }
};

// `kCount` neighbours in accesses of `kAccess` each.
template <class T, int kAccess, int kCount>
FUSED_DROPOUT_DEVICE RawElements<T, kCount> load_raw(const T* from) {
  T element[kCount];
#pragma unroll
  for (int k = 0; k < kCount; k += kAccess) {
    const auto loaded = *reinterpret_cast<const Neighbours<T, kAccess>*>(from + k);
#pragma unroll
    for (int i = 0; i < kAccess; ++i) element[k + i] = loaded.element[i];
  }
  RawElements<T, kCount> raw;
  raw.set(element);
  return raw;
}

}  // namespace
}  // namespace fused_dropout
