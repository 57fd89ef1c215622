// Continuous noise: which uniform or normal number each element gets, as a function of (seed,
// offset, element) alone, whatever the device, the dtype and the strides. fused_dropout's reference
// restates it in readable Python.
//
//   * Element k, counted in logical (row-major) order, takes word k % 4 of one Philox4x32-10 call
//     for elements 4 g .. 4 g + 3, g = k / 4. In the terms of mask.h the call is digit 0 of group g
//     of stream kStreamNoise.
//   * Uniform: u = ((word >> 9) + 1/2) * 2^-23. A float holds it exactly, and 0 < u < 1.
//   * Normals by Box and Muller (1958), from the words (0, 1) and (2, 3) of a call, uniforms a, b:
//     z of the first = r cos(2 pi b), z of the second = r sin(2 pi b), r = sqrt(-2 ln a).
//
// Uniforms have the same bits on every device. Normals are functions of them that every device
// rounds in its own way: a float differs from the exact value by at most 4 units in the last place.
#pragma once

#include <cstdint>

#include "macros.h"
#include "mask.h"
#include "params.h"

namespace fused_dropout {

// Of a rule, noise takes the key, the offset and the slot.
static inline MaskRule make_noise_rule(uint64_t seed, uint64_t offset) {
  return make_mask_rule(seed, offset, kStreamNoise, 0.5, 1);
}

// Signed before it becomes a Real: vector units lack the unsigned conversion.
template <class Real>
FUSED_DROPOUT_INLINE Real uniform_of_word(uint32_t word) {
  return (static_cast<Real>(static_cast<int32_t>(word >> 9)) + Real(0.5)) * Real(0x1p-23);
}

// u of a word is quarters / 4 + rest, exactly, with |rest| <= 1/8: so that the sine and cosine of
// 2 pi u are small polynomials of the rest, exact near their zeros too.
template <class Real>
struct Turn {
  uint32_t quarters;  // 0..4
  Real rest;
};

template <class Real>
FUSED_DROPOUT_INLINE Turn<Real> turn_of_word(uint32_t word) {
  const uint32_t steps = word >> 9;
  const uint32_t quarters = (steps + (1u << 20)) >> 21;
  const int32_t rest = static_cast<int32_t>(steps) - static_cast<int32_t>(quarters << 21);
  return {quarters, (static_cast<Real>(rest) + Real(0.5)) * Real(0x1p-23)};
}

}  // namespace fused_dropout
