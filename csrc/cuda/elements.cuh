// Element types: every kernel computes in Sum<T>, float for the short types and double for double.
#pragma once

#include "compat.h"

namespace fused_dropout {
namespace {

template <class T>
struct SumType {
  using type = float;
};
template <>
struct SumType<double> {
  using type = double;
};
template <class T>
using Sum = typename SumType<T>::type;

FUSED_DROPOUT_DEVICE float to_sum(float x) { return x; }
FUSED_DROPOUT_DEVICE double to_sum(double x) { return x; }
FUSED_DROPOUT_DEVICE float to_sum(__nv_bfloat16 x) { return __bfloat162float(x); }
FUSED_DROPOUT_DEVICE float to_sum(__half x) { return __half2float(x); }

FUSED_DROPOUT_DEVICE void from_sum(float x, float* out) { *out = x; }
FUSED_DROPOUT_DEVICE void from_sum(double x, double* out) { *out = x; }
FUSED_DROPOUT_DEVICE void from_sum(float x, __nv_bfloat16* out) { *out = __float2bfloat16(x); }
FUSED_DROPOUT_DEVICE void from_sum(float x, __half* out) { *out = __float2half(x); }

// `kCount` neighbours in one access of their whole size, to which `from` or `to` is aligned.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Neighbours {
  T element[kCount];
};

// As many as a 16-byte access holds.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <class T, int kCount>
FUSED_DROPOUT_DEVICE void load_neighbours(const T* from, Sum<T>* to) {
  const auto v = *reinterpret_cast<const Neighbours<T, kCount>*>(from);
#pragma unroll
  for (int k = 0; k < kCount; ++k) to[k] = to_sum(v.element[k]);
}

template <class T, int kCount>
FUSED_DROPOUT_DEVICE void store_neighbours(const Sum<T>* from, T* to) {
  Neighbours<T, kCount> v;
#pragma unroll
  for (int k = 0; k < kCount; ++k) from_sum(from[k], &v.element[k]);
  *reinterpret_cast<Neighbours<T, kCount>*>(to) = v;
}

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace
}  // namespace fused_dropout
