// Drawing mask bits.
#pragma once

#include "../../common/mask.h"
#include "prelude.h"

namespace fused_dropout {
namespace {

// Digits s, s + 1, ... s + Digits - 1 of `Batches` batches of Lanes::kCount groups, drawn in
// lockstep.
template <int Batches, int Digits>
FUSED_DROPOUT_INLINE void draw_digits(const MaskRule& rule, const PhiloxKeys<Lanes>& keys,
                                      const Lanes (&groups)[Batches], uint32_t s,
                                      Bits (&digits)[Batches][Digits]) {
  Lanes counters[Batches * Digits][4];
  for (int b = 0; b < Batches; ++b) {
    const Lanes slot = high_halves(groups[b]) | splat(rule.slot);
    for (int d = 0; d < Digits; ++d) {
      Lanes(&counter)[4] = counters[b * Digits + d];
      counter[0] = groups[b];
      counter[1] = slot | splat((s + d) << 16);
      counter[2] = splat(rule.offset[0]);
      counter[3] = splat(rule.offset[1]);
    }
  }
  philox4x32_10(counters, keys);
  for (int b = 0; b < Batches; ++b) {
    for (int d = 0; d < Digits; ++d) digits[b][d] = pack_words(counters[b * Digits + d]);
  }
}

// Keep bits of one batch, its digits drawn `Ahead` at a time: up to Ahead - 1 too many, for the
// sake of the lockstep.
template <int Ahead>
FUSED_DROPOUT_INLINE Bits keep_batch(const MaskRule& rule, const PhiloxKeys<Lanes>& keys,
                                     Lanes groups) {
  const Lanes batch[1] = {groups};
  Bits digits[1][Ahead];
  return keep_bits(rule, bits_of(false), bits_of(true), [&](uint32_t s) {
    if (s % Ahead == 0) draw_digits(rule, keys, batch, s, digits);
    return digits[0][s % Ahead];
  });
}

// Draws `Batches` batches in lockstep while that many are left, advancing what it is given. For
// masks of a single digit, where a batch alone has nothing to draw ahead.
template <int Batches>
FUSED_DROPOUT_INLINE void draw_single_digits(const MaskRule& rule, const PhiloxKeys<Lanes>& keys,
                                             uint64_t stride, Lanes& groups, int64_t& count,
                                             uint32_t*& out) {
  constexpr int64_t kGroups = Batches * Lanes::kCount;
  for (; count >= kGroups; count -= kGroups) {
    Lanes batch[Batches];
    for (int b = 0; b < Batches; ++b) batch[b] = add64(groups, b * Lanes::kCount * stride);
    Bits digit[Batches][1];
    draw_digits(rule, keys, batch, 0, digit);
    for (int b = 0; b < Batches; ++b, out += Lanes::kCount * kGroupWords) {
      store_bits(out, keep_bits(rule, bits_of(false), bits_of(true),
                                [&](uint32_t) { return digit[b][0]; }));
    }
    groups = add64(groups, kGroups * stride);
  }
}

// Groups first, first + stride, ... in the lane order that pack_words wants.
FUSED_DROPOUT_INLINE Lanes group_lanes(uint64_t first, uint64_t stride) {
  constexpr int kBatch = Lanes::kCount;
  uint64_t groups[kBatch];
  for (int k = 0; k < kBatch; ++k) groups[k] = first + (k % 2 * (kBatch / 2) + k / 2) * stride;
  return load_lanes(groups);
}

void draw_groups(const MaskRule& rule, uint64_t first, uint64_t stride, int64_t count,
                 uint32_t* out) {
  constexpr int kBatch = Lanes::kCount;
  const PhiloxKeys<Lanes> keys = philox_keys<Lanes>(rule.key[0], rule.key[1], splat);
  Lanes groups = group_lanes(first, stride);
  if (rule.digits == 1) {
    draw_single_digits<kPhiloxAtOnce>(rule, keys, stride, groups, count, out);
  }
  for (; count >= kBatch; count -= kBatch, out += kBatch * kGroupWords) {
    store_bits(out, keep_batch<kPhiloxAtOnce>(rule, keys, groups));
    groups = add64(groups, kBatch * stride);
  }
  if (count > 0) {
    uint32_t last[kBatch * kGroupWords];
    store_bits(last, keep_batch<kPhiloxAtOnce>(rule, keys, groups));
    __builtin_memcpy(out, last, count * kGroupBytes);
  }
}

}  // namespace
}  // namespace fused_dropout
