// Element types, and how elements are cut over warps. Every kernel computes in Real<T>: float, or
// double for double.
#pragma once

#include <type_traits>

#include "mask.cuh"

namespace fused_dropout {
namespace {

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

template <class T>
constexpr ScalarType kScalarType = ScalarType::kFloat32;
template <>
constexpr ScalarType kScalarType<__nv_bfloat16> = ScalarType::kBFloat16;
template <>
constexpr ScalarType kScalarType<__half> = ScalarType::kFloat16;
template <>
constexpr ScalarType kScalarType<double> = ScalarType::kFloat64;

FUSED_DROPOUT_DEVICE float widen(float x) { return x; }
FUSED_DROPOUT_DEVICE double widen(double x) { return x; }
FUSED_DROPOUT_DEVICE float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
FUSED_DROPOUT_DEVICE float widen(__half x) { return __half2float(x); }

FUSED_DROPOUT_DEVICE void narrow(float x, float* out) { *out = x; }
FUSED_DROPOUT_DEVICE void narrow(double x, double* out) { *out = x; }
FUSED_DROPOUT_DEVICE void narrow(float x, __nv_bfloat16* out) { *out = __float2bfloat16(x); }
FUSED_DROPOUT_DEVICE void narrow(float x, __half* out) { *out = __float2half(x); }

// `kCount` neighbours in one access of their whole size, to which `from` or `to` is aligned.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Neighbours {
  T element[kCount];
};

// As many as a 16-byte access holds.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <class T, int kCount>
FUSED_DROPOUT_DEVICE void load_neighbours(const T* from, Real<T>* to) {
  const auto v = *reinterpret_cast<const Neighbours<T, kCount>*>(from);
#pragma unroll
  for (int k = 0; k < kCount; ++k) to[k] = widen(v.element[k]);
}

template <class T, int kCount>
FUSED_DROPOUT_DEVICE void store_neighbours(const Real<T>* from, T* to) {
  Neighbours<T, kCount> v;
#pragma unroll
  for (int k = 0; k < kCount; ++k) narrow(from[k], &v.element[k]);
  *reinterpret_cast<Neighbours<T, kCount>*>(to) = v;
}

// The same neighbours as an access leaves them in registers: two elements of 16 bits in each.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Packed {
  using Word = std::conditional_t<sizeof(T) * kCount == 2, uint16_t, uint32_t>;
  Word word[sizeof(T) * kCount / sizeof(Word)];
};

template <class T, int kCount>
FUSED_DROPOUT_DEVICE Packed<T, kCount> load_packed(const void* from) {
  return *static_cast<const Packed<T, kCount>*>(from);
}

template <class T, int kCount>
FUSED_DROPOUT_DEVICE void store_packed(const Packed<T, kCount>& from, T* to) {
  if constexpr (sizeof from == sizeof(uint4)) {
    store_16_bytes(to, make_uint4(from.word[0], from.word[1], from.word[2], from.word[3]));
  } else {
    *reinterpret_cast<Packed<T, kCount>*>(to) = from;
  }
}

template <class T, int kCount>
FUSED_DROPOUT_DEVICE Neighbours<T, kCount> unpacked(const Packed<T, kCount>& from) {
  Neighbours<T, kCount> to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, int kCount>
FUSED_DROPOUT_DEVICE Packed<T, kCount> packed(const Neighbours<T, kCount>& from) {
  Packed<T, kCount> to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// ---- launches ---------------------------------------------------------------------------------

constexpr int kElementThreads = 256;
constexpr int64_t kWantedWarps = 132 * 16;  // 16 for each of an H200's multiprocessors

// Groups that a warp draws at a time: 32 where there are enough for all warps.
inline int groups_per_warp(int64_t groups) {
  int count = kWarpLanes;
  while (count > 1 && groups < kWantedWarps * count) count /= 2;
  return count;
}

inline dim3 element_blocks(int64_t threads) {
  const int64_t blocks = ceil_div(threads, kElementThreads);
  return dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks));
}

}  // namespace
}  // namespace fused_dropout
