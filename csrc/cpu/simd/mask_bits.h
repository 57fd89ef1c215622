// The masks of DropConnect: where stored ones are, the drawing of others, and the bits of the block
// that a kernel works on, drawn or copied into scratch that stays in level-1 cache.
#pragma once

#include "draw_groups.h"
#include "panels.h"

namespace fused_dropout {
namespace {

// Addresses stored masks, [groups][masks][outs rounded up][4 words].
struct StoredMasks {
  explicit StoredMasks(const DropConnectProblem& problem)
      : words(problem.mask_bits),
        mask_words(stored_outs(problem.out_features) * kGroupWords),
        group_words(mask_count(problem) * mask_words) {}

  const uint32_t* at(int64_t group, int64_t mask, int64_t out) const {
    return words + group * group_words + mask * mask_words + out * kGroupWords;
  }

  const uint32_t* words;
  int64_t mask_words;
  int64_t group_words;
};

// Packed keep bits of groups x masks x outs, one after another.
FUSED_DROPOUT_INLINE void draw_masks(const DropConnectProblem& problem, Range groups, Range masks,
                                     Range outs, uint32_t* out) {
  const int64_t row_groups = group_count(problem.in_features);
  const int64_t mask_groups = problem.out_features * row_groups;
  const int64_t first = masks.begin * mask_groups + outs.begin * row_groups + groups.begin;
  draw_grid(problem.rule,
            {static_cast<uint64_t>(first),
             {groups.size(), masks.size(), outs.size()},
             {1, static_cast<uint64_t>(mask_groups), static_cast<uint64_t>(row_groups)}},
            out);
}

// Addresses the 128 bits of (group, mask, output feature): output features 16 bytes apart.
struct MaskBits {
  const uint8_t* base;  // of the first group, mask and output feature of the block
  int64_t group_bytes;
  int64_t mask_bytes;
  int64_t first_mask;

  const uint8_t* row(const DropConnectProblem& problem, int64_t row) const {
    return base + (row / problem.rows_per_mask - first_mask) * mask_bytes;
  }
};

// Fills the scratch, and leaves it as it is while consecutive rows share their masks.
class MaskBlock {
 public:
  MaskBlock(const DropConnectProblem& problem, uint32_t* scratch)
      : problem_(problem), stored_(problem), scratch_(scratch) {}

  // Bits of all masks that `rows` use, for groups x outs; outs.size() is a multiple of
  // kStoredOutsMultiple.
  MaskBits bits(Range rows, Range groups, Range outs) {
    const Range masks = {mask_of(rows.begin), mask_of(rows.end - 1) + 1};
    if (masks.begin != masks_.begin || masks.end != masks_.end) {
      if (problem_.mask_bits != nullptr) {
        copy(groups, masks, outs);
      } else {
        draw_masks(problem_, groups, masks, outs, scratch_);
      }
      masks_ = masks;
    }
    const int64_t mask_bytes = outs.size() * kGroupBytes;
    return {reinterpret_cast<const uint8_t*>(scratch_), masks.size() * mask_bytes, mask_bytes,
            masks.begin};
  }

  // The stored masks of rows up to `row` that are not in the scratch; none where masks are drawn.
  Range to_come(int64_t row) const {
    return {masks_.end, problem_.mask_bits != nullptr ? mask_of(row - 1) + 1 : masks_.end};
  }

  // Brings stored masks nearer that will be copied soon. They lie in pieces too short for the
  // processor to do it by itself.
  void prefetch(Range masks, Range groups, Range outs) const {
    constexpr int64_t kLineOuts = 64 / kGroupBytes;  // whose bits a line of the cache holds
    for (int64_t g = groups.begin; g < groups.end; ++g) {
      for (int64_t m = masks.begin; m < masks.end; ++m) {
        for (int64_t o = outs.begin; o < outs.end; o += kLineOuts) {
          __builtin_prefetch(stored_.at(g, m, o), 0, 2);
        }
      }
    }
  }

 private:
  int64_t mask_of(int64_t row) const { return row / problem_.rows_per_mask; }

  // From stored masks.
  void copy(Range groups, Range masks, Range outs) const {
    const int64_t words = outs.size() * kGroupWords;
    uint32_t* out = scratch_;
    for (int64_t g = groups.begin; g < groups.end; ++g) {
      for (int64_t m = masks.begin; m < masks.end; ++m, out += words) {
        const uint32_t* bits = stored_.at(g, m, outs.begin);
        __builtin_memcpy(out, bits, words * static_cast<int64_t>(sizeof(uint32_t)));
      }
    }
  }

  const DropConnectProblem& problem_;
  const StoredMasks stored_;
  uint32_t* scratch_;
  Range masks_{-1, -1};
};

}  // namespace
}  // namespace fused_dropout
