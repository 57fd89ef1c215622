// Drawing mask bits.
//
// A mask whose keep rate has many binary digits is decided digit by digit, most significant first.
// After 8 of them about 40 % of the groups of 128 still hold an undecided element, after 10 about
// 12 %, after 12 about 3 %. So all groups get the first 8; those that are open then are moved
// together, so that no lane draws for a group that is decided, and get 2 more, and so on: 9.2
// digits on average.
//
// Floor for each digit of Lanes::kCount groups: 15 multiplications, as many shifts, and 30 XORs (15
// of three operands on AVX-512; common/digits.h), then some 10 operations to pack and compare. They
// keep the vector ports busy all the time.
#pragma once

#include "../../common/digits.h"
#include "prelude.h"

namespace fused_dropout {
namespace {

constexpr int64_t kDrawnGroups = 32;  // to draw before they are used; they stay in level-1 cache

// Outputs of Philox for `Batches` batches of groups in lockstep, whatever their upper 32 bits are;
// digit 0.
template <int Batches>
FUSED_DROPOUT_INLINE void draw_calls(const MaskRule& rule, const PhiloxKeys<Lanes>& keys,
                                     const Lanes (&groups)[Batches], Bits (&drawn)[Batches]) {
  Lanes counters[Batches][4];
  for (int b = 0; b < Batches; ++b) {
    counters[b][0] = groups[b];
    counters[b][1] = high_halves(groups[b]) | splat(rule.slot);
    counters[b][2] = splat(rule.offset[0]);
    counters[b][3] = splat(rule.offset[1]);
  }
  philox4x32_10(counters, keys);
  for (int b = 0; b < Batches; ++b) drawn[b] = pack_words(counters[b]);
}

// Groups first, first + stride, ... of one batch.
FUSED_DROPOUT_INLINE Lanes group_lanes(uint64_t first, uint64_t stride) {
  uint64_t groups[Lanes::kCount];
  for (int k = 0; k < Lanes::kCount; ++k) groups[k] = first + static_cast<uint64_t>(k) * stride;
  return load_lanes(groups);
}

constexpr int64_t kDrawnAtOnce = 256;  // groups whose state stays in level-1 cache
constexpr uint32_t kFirstDigits = 8;   // that all groups get before the open ones are sought
constexpr uint32_t kMoreDigits = 2;    // that the open ones get before they are sought again

// What the digits of all groups with the same upper 32 bits share.
struct Drawing {
  MaskRule rule;
  PhiloxKeys<Lanes> keys;
  uint32_t high;
  DigitRounds digits[32];
};

FUSED_DROPOUT_INLINE void set_high(Drawing& drawing, uint32_t high) {
  const PhiloxKeys<uint32_t> keys = keys_of(drawing.rule);
  drawing.high = high;
  for (uint32_t s = 0; s < drawing.rule.digits; ++s) {
    drawing.digits[s] = digit_rounds(drawing.rule, keys, high, s);
  }
}

// Compares digits [s, end) of `Batches` batches with the threshold's, `Digits` at a time and all
// batches in lockstep. `Digits` divides their number.
template <int Batches, int Digits>
FUSED_DROPOUT_INLINE void draw_digits(const Drawing& drawing, const Lanes (&groups)[Batches],
                                      uint32_t s, uint32_t end, Bits (&kept)[Batches],
                                      Bits (&undecided)[Batches]) {
  constexpr int kCalls = Batches * Digits;
  GroupRounds<Lanes> rounds[Batches];
  group_rounds(drawing.rule, drawing.keys, groups, splat, rounds);
  for (; s < end; s += Digits) {
    Lanes words[kCalls][4];
    philox_digits<Batches, Digits>(rounds, drawing.digits + s, drawing.keys, splat, words);
#pragma GCC unroll 4
    for (int d = 0; d < Digits; ++d) {
      const bool one = threshold_digit(drawing.rule, s + d);
#pragma GCC unroll 4
      for (int b = 0; b < Batches; ++b) {
        const Bits drawn = pack_words(words[b * Digits + d]);
        if (one) {
          kept[b] = kept[b] | and_not(undecided[b], drawn);
          undecided[b] = undecided[b] & drawn;
        } else {
          undecided[b] = and_not(undecided[b], drawn);
        }
      }
    }
  }
}

// Groups that are being drawn, with their places in the output.
struct OpenGroups {
  int64_t count;
  uint64_t groups[kDrawnAtOnce];
  int32_t places[kDrawnAtOnce];
  uint32_t undecided[kDrawnAtOnce * kGroupWords];
};

// Keeps those that hold an undecided element. At first the places count up from 0.
template <bool kFirst>
FUSED_DROPOUT_INLINE void leave_decided(OpenGroups& open) {
  int64_t left = 0;
  for (int64_t k = 0; k < open.count; ++k) {
    uint64_t bits[2];
    __builtin_memcpy(bits, open.undecided + k * kGroupWords, sizeof bits);
    open.groups[left] = open.groups[k];
    open.places[left] = kFirst ? static_cast<int32_t>(k) : open.places[k];
    __builtin_memcpy(open.undecided + left * kGroupWords, bits, sizeof bits);
    left += (bits[0] | bits[1]) != 0;  // without a branch, which would be mispredicted
  }
  open.count = left;
}

// Digits [s, end) of the open groups: their elements that are kept, and in `open` those that are
// still undecided, unless these were the last digits.
template <bool kFirst, int Batches, int Digits>
FUSED_DROPOUT_INLINE void draw_open_by(const Drawing& drawing, OpenGroups& open, uint32_t s,
                                       uint32_t end, uint32_t* out) {
  constexpr int64_t kBatch = Lanes::kCount;
  constexpr int64_t kGroups = Batches * kBatch;
  const bool last = end == drawing.rule.digits;
  for (int64_t k = 0; k < open.count; k += kGroups) {
    Lanes groups[Batches];
    Bits kept[Batches], undecided[Batches];
    for (int b = 0; b < Batches; ++b) {
      groups[b] = load_lanes(open.groups + k + b * kBatch);
      kept[b] = bits_of(false);
      undecided[b] =
          kFirst ? bits_of(true) : load_bits(open.undecided + (k + b * kBatch) * kGroupWords);
    }
    draw_digits<Batches, Digits>(drawing, groups, s, end, kept, undecided);
    const bool whole = kFirst && open.count - k >= kGroups;
    uint32_t last_kept[kGroups * kGroupWords];
    uint32_t* kept_at = whole ? out + k * kGroupWords : last_kept;
    for (int b = 0; b < Batches; ++b) {
      store_bits(kept_at + b * kBatch * kGroupWords, kept[b]);
      if (!last) store_bits(open.undecided + (k + b * kBatch) * kGroupWords, undecided[b]);
    }
    if (whole) continue;
    const int64_t count = open.count - k < kGroups ? open.count - k : kGroups;
    for (int64_t g = 0; g < count; ++g) {
      uint32_t* place = out + (kFirst ? k + g : open.places[k + g]) * kGroupWords;
      for (int w = 0; w < kGroupWords; ++w) {
        place[w] = last_kept[g * kGroupWords + w] | (kFirst ? 0 : place[w]);
      }
    }
  }
}

// With as many calls in lockstep as the number of digits allows.
template <bool kFirst, int Digits = kPhiloxAtOnce>
FUSED_DROPOUT_INLINE void draw_open(const Drawing& drawing, OpenGroups& open, uint32_t s,
                                    uint32_t end, uint32_t* out) {
  if constexpr (Digits > 1) {
    if ((end - s) % Digits != 0) return draw_open<kFirst, Digits / 2>(drawing, open, s, end, out);
  }
  draw_open_by<kFirst, kPhiloxAtOnce / Digits, Digits>(drawing, open, s, end, out);
}

// Keep bits of the open groups, one after another.
FUSED_DROPOUT_INLINE void draw_all(const Drawing& drawing, OpenGroups& open, uint32_t* out) {
  const uint32_t digits = drawing.rule.digits;
  if (digits <= kFirstDigits) return draw_open<true>(drawing, open, 0, digits, out);
  draw_open<true>(drawing, open, 0, kFirstDigits, out);
  leave_decided<true>(open);
  for (uint32_t s = kFirstDigits; s < digits && open.count > 0; s += kMoreDigits) {
    const uint32_t end = digits - s < kMoreDigits ? digits : s + kMoreDigits;
    draw_open<false>(drawing, open, s, end, out);
    if (end < digits) leave_decided<false>(open);
  }
}

// Groups of the mask in the order in which they are wanted: the last dimension runs fastest.
struct GroupGrid {
  uint64_t first;
  int64_t size[3];
  uint64_t stride[3];
};

// Walks over the grid.
struct GridCursor {
  int64_t at[3];
  uint64_t row[2];  // where the current rows of dimensions 1 and 2 start
};

FUSED_DROPOUT_INLINE uint64_t group_at(const GroupGrid& grid, const GridCursor& cursor) {
  return cursor.row[1] + static_cast<uint64_t>(cursor.at[2]) * grid.stride[2];
}

// By `count` groups that do not reach beyond the end of their row.
FUSED_DROPOUT_INLINE void advance(const GroupGrid& grid, GridCursor& cursor, int64_t count) {
  if ((cursor.at[2] += count) < grid.size[2]) return;
  cursor.at[2] = 0;
  cursor.row[1] += grid.stride[1];
  if (++cursor.at[1] < grid.size[1]) return;
  cursor.at[1] = 0;
  cursor.row[1] = cursor.row[0] += grid.stride[0];
}

// The next `count` groups, filled up to what is drawn in lockstep. Returns the bits in which their
// upper halves differ.
FUSED_DROPOUT_INLINE uint64_t next_groups(const GroupGrid& grid, GridCursor& cursor, int64_t count,
                                          uint64_t* groups) {
  constexpr int64_t kAtOnce = kPhiloxAtOnce * Lanes::kCount;
  const uint64_t first = group_at(grid, cursor);
  uint64_t last = first;
  uint64_t differ = 0;
  int64_t k = 0;
  while (k < count) {
    const int64_t row_left = grid.size[2] - cursor.at[2];
    const int64_t run = row_left < count - k ? row_left : count - k;
    const uint64_t start = group_at(grid, cursor);
    for (int64_t g = 0; g < run; ++g) {
      groups[k + g] = start + static_cast<uint64_t>(g) * grid.stride[2];
    }
    k += run;
    last = groups[k - 1];
    differ |= (start ^ first) | (last ^ first);
    advance(grid, cursor, run);
  }
  for (; k % kAtOnce != 0; ++k) groups[k] = last;
  return differ >> 32;
}

// Packed keep bits of all groups of the grid, one after another.
void draw_grid(const MaskRule& rule, const GroupGrid& grid, uint32_t* out) {
  const int64_t total = grid.size[0] * grid.size[1] * grid.size[2];
  if (rule.digits == 0) {
    for (int64_t k = 0; k < total * kGroupWords; ++k) out[k] = rule.keep_all ? ~0u : 0u;
    return;
  }
  Drawing drawing;
  drawing.rule = rule;
  drawing.keys = philox_keys<Lanes>(rule.key[0], rule.key[1], splat);
  drawing.high = ~0u;  // of no group: they have 48 bits
  OpenGroups open;
  GridCursor cursor = {{0, 0, 0}, {grid.first, grid.first}};
  for (int64_t done = 0; done < total; done += kDrawnAtOnce, out += kDrawnAtOnce * kGroupWords) {
    open.count = total - done < kDrawnAtOnce ? total - done : kDrawnAtOnce;
    const uint32_t high = static_cast<uint32_t>(group_at(grid, cursor) >> 32);
    if (next_groups(grid, cursor, open.count, open.groups) != 0) {
      for (int64_t k = 0; k < open.count; ++k) {
        const GroupBits bits = keep_group(rule, open.groups[k]);
        __builtin_memcpy(out + k * kGroupWords, bits.word, sizeof bits.word);
      }
      continue;
    }
    if (high != drawing.high) set_high(drawing, high);
    draw_all(drawing, open, out);
  }
}

// Packed keep bits of groups first, first + stride, ...
void draw_groups(const MaskRule& rule, uint64_t first, uint64_t stride, int64_t count,
                 uint32_t* out) {
  draw_grid(rule, {first, {1, 1, count}, {0, 0, stride}}, out);
}

}  // namespace
}  // namespace fused_dropout
