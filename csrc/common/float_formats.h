// Floats of 16 bits as integer arithmetic. Rounding is to nearest even.
#pragma once

#include <cstdint>

#include "macros.h"

namespace fused_dropout {
namespace {

FUSED_DROPOUT_INLINE float float_from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

FUSED_DROPOUT_INLINE uint32_t bits_from_float(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

FUSED_DROPOUT_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7FFF;
  // Subnormals: their mantissa counts units of 2^-24, which float holds exactly.
  if (magnitude < 0x0400) {
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return float_from_bits(sign | bits_from_float(value));
  }
  // Exponent bias 15 becomes 127; infinities and NaNs get float's largest exponent.
  const uint32_t rebias = magnitude >= 0x7C00 ? 0x70000000u : 0x38000000u;
  return float_from_bits(sign | ((magnitude << 13) + rebias));
}

FUSED_DROPOUT_INLINE float bfloat_to_float(uint16_t bfloat) {
  return float_from_bits(static_cast<uint32_t>(bfloat) << 16);
}

FUSED_DROPOUT_INLINE uint16_t float_to_half(float x) {
  const uint32_t bits = bits_from_float(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);   // NaN
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // rounds past 65504
  if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 aligns the units of 2^-24 with the float's last bit, and rounds there.
    const uint32_t rounded = bits_from_float(float_from_bits(magnitude) + 0.5f);
    return static_cast<uint16_t>(sign | (rounded - 0x3F000000));
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13));
}

FUSED_DROPOUT_INLINE uint16_t float_to_bfloat(float x) {
  const uint32_t bits = bits_from_float(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x0040);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace
}  // namespace fused_dropout
