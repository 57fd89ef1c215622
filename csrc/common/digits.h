// The digits of one group of the mask, drawn for less than a whole Philox call each.
//
// The counters of a group's digits differ in one word alone, and the counters of different groups
// in another; two words are the same for a whole mask. So most of the first three of Philox's ten
// rounds depends on the group alone (GroupRounds: computed once for all of its digits) or on the
// digit alone (DigitRounds: computed once for all groups). What remains is 7.5 rounds' work for
// each digit. The outputs are Philox's, bit for bit.
#pragma once

#include "mask.h"

namespace fused_dropout {

// With c the counter and k the keys, round r makes
//   c0' = high(c2 * m1) ^ c1 ^ k0[r],  c1' = low(c2 * m1),
//   c2' = high(c0 * m0) ^ c3 ^ k1[r],  c3' = low(c0 * m0).
template <class Word>
struct GroupRounds {
  Word c2_of_round2;  // but for DigitRounds::c2_of_round2
  Word c0_of_round3;  // but for the product of this round
  Word c2_of_round3;  // but for DigitRounds::c2_of_round3
  Word c2_of_round4;  // but for the product of this round
};

struct DigitRounds {
  uint32_t c2_of_round2;
  uint32_t c2_of_round3;
};

// Of digit s of all groups with these upper 32 bits.
FUSED_DROPOUT_INLINE DigitRounds digit_rounds(const MaskRule& rule,
                                              const PhiloxKeys<uint32_t>& keys, uint32_t high,
                                              uint32_t s) {
  const uint32_t c1 = rule.slot | s << 16 | high;
  const uint32_t c0 = multiply(rule.offset[0], kPhiloxMultiplier1).high ^ c1 ^ keys.key0[0];
  const Product<uint32_t> a = multiply(c0, kPhiloxMultiplier0);
  return {a.high ^ keys.key1[1], a.low ^ keys.key1[2]};
}

// Of `Groups` words of groups in lockstep. `splat` makes a Word of a 32-bit number.
template <int Groups, class Word, class Splat>
FUSED_DROPOUT_INLINE void group_rounds(const MaskRule& rule, const PhiloxKeys<Word>& keys,
                                       const Word (&groups)[Groups], Splat splat,
                                       GroupRounds<Word> (&rounds)[Groups]) {
  const Word c1 = splat(rule.offset[0] * kPhiloxMultiplier1);  // after round 1
  const Word c3 = splat(rule.offset[1]);
#pragma GCC unroll 8
  for (int g = 0; g < Groups; ++g) {
    const Product<Word> first = multiply(groups[g], kPhiloxMultiplier0);
    const Word c2 = xor3(first.high, c3, keys.key1[0]);
    const Product<Word> second = multiply(c2, kPhiloxMultiplier1);
    const Word c0 = xor3(second.high, c1, keys.key0[1]);
    const Product<Word> third = multiply(c0, kPhiloxMultiplier0);
    rounds[g].c2_of_round2 = first.low;
    rounds[g].c0_of_round3 = second.low ^ keys.key0[2];
    rounds[g].c2_of_round3 = third.high;
    rounds[g].c2_of_round4 = third.low ^ keys.key1[3];
  }
}

// Outputs of Philox in lockstep: out[g * Digits + d] is digit d of groups g.
template <int Groups, int Digits, class Word, class Splat>
FUSED_DROPOUT_INLINE void philox_digits(const GroupRounds<Word> (&rounds)[Groups],
                                        const DigitRounds* digits, const PhiloxKeys<Word>& keys,
                                        Splat splat, Word (&out)[Groups * Digits][4]) {
#pragma GCC unroll 8
  for (int call = 0; call < Groups * Digits; ++call) {
    const GroupRounds<Word>& group = rounds[call / Digits];
    const DigitRounds& digit = digits[call % Digits];
    Word(&c)[4] = out[call];
    const Word c2 = group.c2_of_round2 ^ splat(digit.c2_of_round2);
    const Product<Word> b = multiply(c2, kPhiloxMultiplier1);
    const Product<Word> a4 = multiply(b.high ^ group.c0_of_round3, kPhiloxMultiplier0);
    const Product<Word> b4 =
        multiply(group.c2_of_round3 ^ splat(digit.c2_of_round3), kPhiloxMultiplier1);
    c[0] = xor3(b4.high, b.low, keys.key0[3]);
    c[1] = b4.low;
    c[2] = a4.high ^ group.c2_of_round4;
    c[3] = a4.low;
  }
  philox_rounds<4>(out, keys);
}

}  // namespace fused_dropout
