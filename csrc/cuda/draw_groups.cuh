// Drawing the groups of a mask on a GPU: by a thread for itself, some groups in lockstep; by the
// lanes of a warp that share the digits of a group; by a warp for many groups, whose open ones are
// spread over its lanes again.
//
// Issue slots in sm_90's code (a wide multiplication is one): a group takes about 45 at one digit,
// and 60 a digit where there are more; 48 with some groups in lockstep, which share the loop and
// the branch on T's digit. At 16 digits a lane alone would wait for the slowest of its warp, 13.5
// digits on average; with the open groups spread again a group takes about 10.
#pragma once

#include "../common/digits.h"
#include "compat.h"

namespace fused_dropout {

// Where a kernel finds its seed and offset: by value, which no launch and no copy has to bring, or
// in an rng_state on the device, where a CUDA graph finds fresh ones at every replay.
struct RngSource {
  const int64_t* device_state;  // seed and offset; null: the two below
  uint64_t seed;
  uint64_t offset;
};

// `device_state` is the memory of an int64[2] tensor on the device.
inline RngSource rng_from_state(const int64_t* device_state) { return {device_state, 0, 0}; }

namespace {

constexpr int kWarpLanes = 32;

// `rule` with the seed and offset of `rng` in place of those that the host gave it.
FUSED_DROPOUT_DEVICE MaskRule seeded(MaskRule rule, const RngSource& rng) {
  uint64_t seed = rng.seed;
  uint64_t offset = rng.offset;
  if (rng.device_state) {
    seed = static_cast<uint64_t>(rng.device_state[0]);
    offset = static_cast<uint64_t>(rng.device_state[1]);
  }
  rule.key[0] = static_cast<uint32_t>(seed);
  rule.key[1] = static_cast<uint32_t>(seed >> 32);
  rule.offset[0] = static_cast<uint32_t>(offset);
  rule.offset[1] = static_cast<uint32_t>(offset >> 32);
  return rule;
}

FUSED_DROPOUT_DEVICE void hold_all(PhiloxKeys<uint32_t>& keys) {
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    hold(keys.key0[round]);
    hold(keys.key1[round]);
  }
}

// The keys of the rounds, once for all groups that a thread draws.
FUSED_DROPOUT_DEVICE PhiloxKeys<uint32_t> held_keys(const MaskRule& rule) {
  PhiloxKeys<uint32_t> keys = keys_of(rule);
  hold_all(keys);
  return keys;
}

// ---- a thread -----------------------------------------------------------------------------------

struct SameWord {
  FUSED_DROPOUT_DEVICE uint32_t operator()(uint32_t word) const { return word; }
};

// Groups that a thread draws in lockstep, between two of their digits.
template <int kGroups>
struct OpenGroups {
  GroupRounds<uint32_t> rounds[kGroups];
  uint32_t high[kGroups];  // of the groups' numbers
  GroupBits kept[kGroups];
  GroupBits open[kGroups];  // elements that no digit has decided
};

template <int kGroups>
FUSED_DROPOUT_DEVICE void set_groups(const MaskRule& rule, const PhiloxKeys<uint32_t>& keys,
                                     const uint64_t (&groups)[kGroups], OpenGroups<kGroups>& all) {
  uint32_t low[kGroups];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    low[g] = static_cast<uint32_t>(groups[g]);
    all.high[g] = static_cast<uint32_t>(groups[g] >> 32);
  }
  group_rounds<kGroups>(rule, keys, low, SameWord(), all.rounds);
}

template <int kGroups>
FUSED_DROPOUT_DEVICE void draw_digit(const MaskRule& rule, const PhiloxKeys<uint32_t>& keys,
                                     const OpenGroups<kGroups>& all, uint32_t s,
                                     GroupBits (&drawn)[kGroups]) {
  uint32_t words[kGroups][kGroupWords];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const DigitRounds digit = digit_rounds(rule, keys, all.high[g], s);
    const GroupRounds<uint32_t> group[1] = {all.rounds[g]};
    uint32_t out[1][kGroupWords];
    philox_digits<1, 1>(group, &digit, keys, SameWord(), out);
#pragma unroll
    for (int w = 0; w < kGroupWords; ++w) words[g][w] = out[0][w];
  }
#pragma unroll
  for (int g = 0; g < kGroups; ++g)
    drawn[g] = {{words[g][0], words[g][1], words[g][2], words[g][3]}};
}

// Digit s of all groups. T's digit is the same for every thread.
template <int kGroups>
FUSED_DROPOUT_DEVICE void compare_digit(const MaskRule& rule, const PhiloxKeys<uint32_t>& keys,
                                        uint32_t s, OpenGroups<kGroups>& all) {
  GroupBits drawn[kGroups];
  draw_digit(rule, keys, all, s, drawn);
  if (threshold_digit(rule, s)) {
    keep_branch();
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      all.kept[g] = all.kept[g] | and_not(all.open[g], drawn[g]);
      all.open[g] = all.open[g] & drawn[g];
    }
  } else {
    keep_branch();
#pragma unroll
    for (int g = 0; g < kGroups; ++g) all.open[g] = and_not(all.open[g], drawn[g]);
  }
}

constexpr uint32_t kFirstDigits = 8;  // 128 elements are hardly ever decided sooner

// The keep bits of some groups where T = 1/2: what the digit does not say.
template <int kGroups>
FUSED_DROPOUT_DEVICE void keep_groups_of_one_digit(const MaskRule& rule,
                                                   const PhiloxKeys<uint32_t>& keys,
                                                   const uint64_t (&groups)[kGroups],
                                                   GroupBits (&kept)[kGroups]) {
  PhiloxKeys<uint32_t> last = keys;
  last.key0[kPhiloxRounds - 1] = ~last.key0[kPhiloxRounds - 1];
  last.key1[kPhiloxRounds - 1] = ~last.key1[kPhiloxRounds - 1];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const GroupBits digit = group_digit(rule, last, groups[g], 0);
    kept[g] = {{digit.word[0], ~digit.word[1], digit.word[2], ~digit.word[3]}};
  }
}

// The keep bits of some groups.
template <int kGroups>
FUSED_DROPOUT_DEVICE void keep_groups(const MaskRule& rule, const PhiloxKeys<uint32_t>& keys,
                                      const uint64_t (&groups)[kGroups],
                                      GroupBits (&kept)[kGroups]) {
  if (rule.digits == 1) {
    keep_groups_of_one_digit(rule, keys, groups, kept);
    return;
  }
  OpenGroups<kGroups> all;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    all.kept[g] = group_of(rule.keep_all ? ~0u : 0u);
    all.open[g] = group_of(~0u);
  }
  set_groups(rule, keys, groups, all);
#pragma unroll 1
  for (uint32_t s = 0; s < rule.digits; ++s) {
    compare_digit(rule, keys, s, all);
    if (s + 1 < kFirstDigits) continue;
    GroupBits open = all.open[0];
#pragma unroll
    for (int g = 1; g < kGroups; ++g) open = open | all.open[g];
    if (all_zero(open)) break;
  }
#pragma unroll
  for (int g = 0; g < kGroups; ++g) kept[g] = all.kept[g];
}

// The keep bits of one group.
FUSED_DROPOUT_DEVICE GroupBits keep_group(const MaskRule& rule, const PhiloxKeys<uint32_t>& keys,
                                          uint64_t group) {
  const uint64_t groups[1] = {group};
  GroupBits kept[1];
  keep_groups(rule, keys, groups, kept);
  return kept[0];
}

// ---- the lanes of a warp, for few groups --------------------------------------------------------

constexpr int kDigitLanes = 16;

FUSED_DROPOUT_DEVICE GroupBits shuffled(const GroupBits& bits, int lane_mask) {
  GroupBits other;
#pragma unroll
  for (int w = 0; w < kGroupWords; ++w) {
    other.word[w] = __shfl_xor_sync(~0u, bits.word[w], lane_mask);
  }
  return other;
}

// keep_group by kDigitLanes neighbouring lanes, of which `digit` draws one digit; all get the
// result. For a few groups, where one lane after the other would wait for 16 Philox calls in a row.
// The rule has 1 to kDigitLanes digits, and the whole warp takes part.
FUSED_DROPOUT_DEVICE GroupBits keep_group_by_lanes(const MaskRule& rule,
                                                   const PhiloxKeys<uint32_t>& keys, uint64_t group,
                                                   int digit) {
  // What a run of digits says: already below T's, and still equal to them.
  GroupBits below = group_of(0u);
  GroupBits equal = group_of(~0u);
  if (static_cast<uint32_t>(digit) < rule.digits) {
    const uint32_t s = static_cast<uint32_t>(digit);
    const GroupBits drawn = group_digit(rule, keys, group, s);
    if (threshold_digit(rule, s)) {
      below = and_not(equal, drawn);
      equal = drawn;
    } else {
      equal = and_not(equal, drawn);
    }
  }
  // Two neighbouring runs make one: the second counts where the first left it open.
#pragma unroll
  for (int run = 1; run < kDigitLanes; run *= 2) {
    const GroupBits other_below = shuffled(below, run);
    const GroupBits other_equal = shuffled(equal, run);
    const bool is_first = (digit & run) == 0;
    below = is_first ? below | (equal & other_below) : other_below | (other_equal & below);
    equal = equal & other_equal;
  }
  return below;
}

// ---- a warp, for many groups --------------------------------------------------------------------

constexpr uint32_t kMoreDigits = 2;  // that open groups get before they are gathered again

// What a warp holds of groups that are still open.
template <int kPerLane>
struct WaitingGroups {
  GroupBits kept[kWarpLanes * kPerLane];
  GroupBits open[kWarpLanes * kPerLane];
  int number[kWarpLanes * kPerLane];  // of group_of
};

FUSED_DROPOUT_DEVICE int lanes_below(unsigned lanes, int lane) {
  return __popc(lanes & ((1u << lane) - 1));
}

// Gives a group that lane `lane` has drawn to `put`, where it is decided, else a place behind the
// `waiting` ones. All lanes take part, those without a group with `mine` false.
template <int kPerLane, class Put>
FUSED_DROPOUT_DEVICE int put_or_wait(int number, const GroupBits& kept, const GroupBits& open,
                                     bool mine, bool decided, int lane, int waiting,
                                     WaitingGroups<kPerLane>& groups, Put put) {
  const bool waits = mine && !decided;
  const unsigned lanes = __ballot_sync(~0u, waits);
  if (waits) {
    const int place = waiting + lanes_below(lanes, lane);
    groups.kept[place] = kept;
    groups.open[place] = open;
    groups.number[place] = number;
  } else if (mine) {
    put(number, kept);
  }
  return waiting + __popc(lanes);
}

// Draws groups group_of(0) .. group_of(count - 1), count <= 32 * kPerLane, and calls put(number,
// bits) for each, in any order and from any lane of the warp.
template <int kPerLane, class GroupOf, class Put>
FUSED_DROPOUT_DEVICE void draw_groups_of_warp(const MaskRule& rule,
                                              const PhiloxKeys<uint32_t>& keys, int count, int lane,
                                              WaitingGroups<kPerLane>& groups, GroupOf group_at,
                                              Put put) {
  uint64_t drawn[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int number = lane + j * kWarpLanes;
    drawn[j] = group_at(number < count ? number : count - 1);
  }
  if (rule.digits <= kFirstDigits + kMoreDigits) {
    GroupBits kept[kPerLane];
    keep_groups(rule, keys, drawn, kept);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      if (lane + j * kWarpLanes < count) put(lane + j * kWarpLanes, kept[j]);
    }
    return;
  }
  OpenGroups<kPerLane> all;
  set_groups(rule, keys, drawn, all);
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    all.kept[j] = group_of(0u);
    all.open[j] = group_of(~0u);
  }
#pragma unroll 1
  for (uint32_t s = 0; s < kFirstDigits; ++s) compare_digit(rule, keys, s, all);
  int waiting = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int number = lane + j * kWarpLanes;
    waiting = put_or_wait(number, all.kept[j], all.open[j], number < count, all_zero(all.open[j]),
                          lane, waiting, groups, put);
  }
#pragma unroll 1
  for (uint32_t s = kFirstDigits; s < rule.digits && waiting > 0; s += kMoreDigits) {
    const bool is_last = s + kMoreDigits >= rule.digits;  // what is open then is dropped
    int left = 0;
    __syncwarp();
#pragma unroll 1
    for (int first = 0; first < waiting; first += kWarpLanes) {
      const bool mine = first + lane < waiting;
      const int place = mine ? first + lane : first;
      const int number = groups.number[place];
      OpenGroups<1> one;
      one.kept[0] = groups.kept[place];
      one.open[0] = groups.open[place];
      const uint64_t group[1] = {group_at(number)};
      set_groups(rule, keys, group, one);
      compare_digit(rule, keys, s, one);
      if (s + 1 < rule.digits) compare_digit(rule, keys, s + 1, one);
      __syncwarp();  // the places of these groups are free
      left = put_or_wait(number, one.kept[0], one.open[0], mine, is_last || all_zero(one.open[0]),
                         lane, left, groups, put);
    }
    waiting = left;
  }
  __syncwarp();
}

}  // namespace
}  // namespace fused_dropout
