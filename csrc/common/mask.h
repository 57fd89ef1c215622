// THE mask: which elements are kept, as a function of (seed, offset, stream, row, column, p) alone.
// Every backend includes this header; fused_dropout/reference/_masks.py restates it in readable
// Python, and tests/golden_masks.txt binds both.
//
//   * A mask is a bit matrix [rows, cols]. Each row is cut into groups of 128 columns, starting
//     afresh in every row: group = row * ceil(cols / 128) + col / 128.
//   * Element e of a group owns a binary fraction u = sum_s bit_s * 2^-(s+1). Digit s of all 128
//     elements is one Philox4x32-10 output (word e / 32, bit e % 32) with
//       key     = (seed low, seed high)
//       counter = (group low, 1 << 31 | stream << 24 | s << 16 | group >> 32, offset low, offset
//       high)
//   * T = rint((1 - p) * 2^digits); the element is kept iff u < T / 2^digits.
//
// Trailing zero bits of T cannot change the comparison, so their digits are never drawn.
#pragma once

#include <cmath>
#include <cstdint>

#include "macros.h"
#include "params.h"
#include "philox.h"

namespace fused_dropout {

// Rounds up, for any a >= 0 and b >= 1: a + b may not fit.
FUSED_DROPOUT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Groups of a row of `cols` columns.
FUSED_DROPOUT_INLINE int64_t group_count(int64_t cols) { return ceil_div(cols, kGroupColumns); }

// Masks of a DropConnect layer, and the output features that its stored masks have room for.
FUSED_DROPOUT_INLINE int64_t mask_count(const DropConnectProblem& problem) {
  return ceil_div(problem.rows, problem.rows_per_mask);
}
FUSED_DROPOUT_INLINE int64_t stored_outs(int64_t out_features) {
  return ceil_div(out_features, kStoredOutsMultiple) * kStoredOutsMultiple;
}

static inline MaskRule make_mask_rule(uint64_t seed, uint64_t offset, uint32_t stream, double p,
                                      int digits) {
  uint64_t threshold = static_cast<uint64_t>(std::nearbyint(std::ldexp(1.0 - p, digits)));
  MaskRule rule{};
  rule.key[0] = static_cast<uint32_t>(seed);
  rule.key[1] = static_cast<uint32_t>(seed >> 32);
  rule.offset[0] = static_cast<uint32_t>(offset);
  rule.offset[1] = static_cast<uint32_t>(offset >> 32);
  rule.slot = 1u << 31 | stream << 24;
  rule.keep_all = threshold >> digits;
  if (threshold == 0 || rule.keep_all) return rule;
  rule.digits = static_cast<uint32_t>(digits);
  for (; (threshold & 1) == 0; threshold >>= 1) --rule.digits;
  rule.threshold = static_cast<uint32_t>(threshold);
  return rule;
}

FUSED_DROPOUT_INLINE bool threshold_digit(const MaskRule& rule, uint32_t s) {
  return rule.threshold >> (rule.digits - 1 - s) & 1;
}

// Compares u < T digit by digit from the most significant, for as many elements as `Bits` holds,
// and stops once every element is decided. `digit(s)` returns digit s of those elements.
template <class Bits, class Digit>
FUSED_DROPOUT_INLINE Bits keep_bits(const MaskRule& rule, Bits zeros, Bits ones, Digit digit) {
  constexpr uint32_t kFirstCheck = 7;  // 128 elements are hardly ever decided sooner
  Bits kept = rule.keep_all ? ones : zeros;
  Bits undecided = ones;
  for (uint32_t s = 0; s < rule.digits; ++s) {
    const Bits drawn = digit(s);
    if (threshold_digit(rule, s)) {
      kept = kept | and_not(undecided, drawn);
      undecided = undecided & drawn;
    } else {
      undecided = and_not(undecided, drawn);
    }
    if (s >= kFirstCheck && all_zero(undecided)) break;
  }
  return kept;
}

// 128 elements as four words, for scalar and CUDA code.
struct GroupBits {
  uint32_t word[kGroupWords];
};

FUSED_DROPOUT_INLINE GroupBits group_of(uint32_t w) { return {{w, w, w, w}}; }

FUSED_DROPOUT_INLINE bool all_zero(GroupBits a) {
  return (a.word[0] | a.word[1] | a.word[2] | a.word[3]) == 0;
}

FUSED_DROPOUT_INLINE GroupBits operator|(GroupBits a, GroupBits b) {
  return {
      {a.word[0] | b.word[0], a.word[1] | b.word[1], a.word[2] | b.word[2], a.word[3] | b.word[3]}};
}

FUSED_DROPOUT_INLINE GroupBits operator&(GroupBits a, GroupBits b) {
  return {
      {a.word[0] & b.word[0], a.word[1] & b.word[1], a.word[2] & b.word[2], a.word[3] & b.word[3]}};
}

FUSED_DROPOUT_INLINE GroupBits and_not(GroupBits a, GroupBits b) {
  return {{a.word[0] & ~b.word[0], a.word[1] & ~b.word[1], a.word[2] & ~b.word[2],
           a.word[3] & ~b.word[3]}};
}

FUSED_DROPOUT_INLINE PhiloxKeys<uint32_t> keys_of(const MaskRule& rule) {
  return philox_keys<uint32_t>(rule.key[0], rule.key[1], [](uint32_t key) { return key; });
}

// Digit s of the 128 elements of a group.
FUSED_DROPOUT_INLINE GroupBits group_digit(const MaskRule& rule, const PhiloxKeys<uint32_t>& keys,
                                           uint64_t group, uint32_t s) {
  uint32_t counter[1][4] = {{static_cast<uint32_t>(group),
                             rule.slot | s << 16 | static_cast<uint32_t>(group >> 32),
                             rule.offset[0], rule.offset[1]}};
  philox4x32_10(counter, keys);
  return {{counter[0][0], counter[0][1], counter[0][2], counter[0][3]}};
}

// The keep bits of one group of the mask.
FUSED_DROPOUT_INLINE GroupBits keep_group(const MaskRule& rule, uint64_t group) {
  const PhiloxKeys<uint32_t> keys = keys_of(rule);
  return keep_bits(rule, group_of(0u), group_of(~0u),
                   [&](uint32_t s) { return group_digit(rule, keys, group, s); });
}

}  // namespace fused_dropout
