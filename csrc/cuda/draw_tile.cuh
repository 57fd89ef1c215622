// Drawing up to 32 groups by a warp that is to use their bits at once.
//
// Each lane draws the first 8 digits of a group, 57 issue slots each. Of 32 groups 13 have open
// elements then, on average, and two lanes share the other digits of each: as long as 4 more digits
// of all. The slowest of 32 groups alone would take 5.5 more; spreading open groups again every two
// digits (draw_groups.cuh) takes 3 to 4 rounds of 190 slots, which pays where a lane has several
// groups.
#pragma once

#include "draw_groups.cuh"

namespace fused_dropout {
namespace {

// What a warp holds of groups that are still open.
struct SharedGroups {
  GroupBits open[kWarpLanes];
  int number[kWarpLanes];
};

// What digits first .. first + count - 1 say, as far as the rule has them: which elements they put
// below T's digits, and in `equal` which of those set there are still equal to them.
FUSED_DROPOUT_DEVICE GroupBits below_by_digits(const MaskRule& rule,
                                               const PhiloxKeys<uint32_t>& keys,
                                               const uint64_t (&group)[1], uint32_t first,
                                               uint32_t count, GroupBits& equal) {
  OpenGroups<1> all;
  set_groups(rule, keys, group, all);
  GroupBits below = group_of(0u);
#pragma unroll 1
  for (uint32_t s = first; s < first + count; ++s) {
    GroupBits drawn[1];
    draw_digit(rule, keys, all, s, drawn);
    if (s >= rule.digits) continue;
    // The lanes are at different digits.
    const uint32_t ones = threshold_digit(rule, s) ? ~0u : 0u;
#pragma unroll
    for (int w = 0; w < kGroupWords; ++w) {
      below.word[w] |= equal.word[w] & ~drawn[0].word[w] & ones;
      equal.word[w] &= ~(drawn[0].word[w] ^ ones);
    }
  }
  return below;
}

// The keep bits of groups group_at(0) .. group_at(count - 1), count <= 32, in *bits_at(0) and on,
// which all lanes may read after the next __syncwarp().
template <class GroupAt, class BitsAt>
FUSED_DROPOUT_DEVICE void draw_groups_of_tile(const MaskRule& rule, int count, int lane,
                                              SharedGroups& waiting, GroupAt group_at,
                                              BitsAt bits_at) {
  const PhiloxKeys<uint32_t> keys = held_keys(rule);
  const uint64_t mine[1] = {group_at(lane < count ? lane : 0)};
  if (rule.digits <= kFirstDigits) {
    GroupBits kept[1];
    keep_groups(rule, keys, mine, kept);
    if (lane < count) *bits_at(lane) = kept[0];
    return;
  }
  OpenGroups<1> all;
  all.kept[0] = group_of(0u);
  all.open[0] = group_of(~0u);
  set_groups(rule, keys, mine, all);
#pragma unroll 1
  for (uint32_t s = 0; s < kFirstDigits; ++s) compare_digit(rule, keys, s, all);
  const bool waits = lane < count && !all_zero(all.open[0]);
  const unsigned lanes = __ballot_sync(~0u, waits);
  if (lane < count) *bits_at(lane) = all.kept[0];
  if (waits) {
    const int place = lanes_below(lanes, lane);
    waiting.open[place] = all.open[0];
    waiting.number[place] = lane;
  }
  __syncwarp();
  const int groups = __popc(lanes);
  const uint32_t half = (rule.digits - kFirstDigits + 1) / 2;  // of the digits that are left
  const bool is_second = lane % 2 != 0;
#pragma unroll 1
  for (int base = 0; base < groups; base += kWarpLanes / 2) {
    const int place = base + lane / 2;
    const int number = waiting.number[place < groups ? place : base];
    const uint64_t group[1] = {group_at(number)};
    GroupBits equal = group_of(~0u);
    const GroupBits below =
        below_by_digits(rule, keys, group, kFirstDigits + (is_second ? half : 0), half, equal);
    const GroupBits below_in_second = shuffled(below, 1);
    if (place < groups && !is_second) {
      GroupBits* const bits = bits_at(number);
      *bits = *bits | (waiting.open[place] & (below | (equal & below_in_second)));
    }
  }
}

}  // namespace
}  // namespace fused_dropout
