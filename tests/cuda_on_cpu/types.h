// CUDA's vector types, 16-bit floats and error codes, as far as the kernels use them.
#pragma once

#include <cstdint>

#include "../../csrc/common/float_formats.h"

#define EMULATOR_VECTOR2(T, name, alignment) \
  struct alignas(alignment) name {           \
    T x, y;                                  \
  };                                         \
  inline name make_##name(T x, T y) { return {x, y}; }

#define EMULATOR_VECTOR4(T, name) \
  struct alignas(16) name {       \
    T x, y, z, w;                 \
  };                              \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

EMULATOR_VECTOR2(int, int2, 8)
EMULATOR_VECTOR2(unsigned, uint2, 8)
EMULATOR_VECTOR2(float, float2, 8)
EMULATOR_VECTOR2(double, double2, 16)
EMULATOR_VECTOR4(int, int4)
EMULATOR_VECTOR4(unsigned, uint4)
EMULATOR_VECTOR4(float, float4)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};

struct __half {
  uint16_t bits;
};

struct __nv_bfloat16 {
  uint16_t bits;
};

struct alignas(4) __half2 {
  __half x, y;
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

namespace emulator {
constexpr uint16_t kNaN16 = 0x7FFF;  // what a GPU makes of any NaN
}

inline float __half2float(__half x) { return fused_dropout::half_to_float(x.bits); }
inline float __bfloat162float(__nv_bfloat16 x) { return fused_dropout::bfloat_to_float(x.bits); }
inline __half __float2half(float x) {
  return {x != x ? emulator::kNaN16 : fused_dropout::float_to_half(x)};
}
inline __nv_bfloat16 __float2bfloat16(float x) {
  return {x != x ? emulator::kNaN16 : fused_dropout::float_to_bfloat(x)};
}

inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
  return {__bfloat162float(v.x), __bfloat162float(v.y)};
}
inline __half2 __float22half2_rn(float2 v) { return {__float2half(v.x), __float2half(v.y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
  return {__float2bfloat16(v.x), __float2bfloat16(v.y)};
}

// The errors that a launch can give, with CUDA's numbers.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;
