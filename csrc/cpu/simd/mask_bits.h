// The mask bits of the block that a kernel works on: drawn, or copied from stored masks, into
// scratch that stays in level-1 cache.
#pragma once

#include "draw_groups.h"
#include "panels.h"

namespace fused_dropout {
namespace {

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
      : problem_(problem), scratch_(scratch) {}

  // Bits of all masks that `rows` use, for groups x outs; outs.size() is a multiple of
  // kStoredOutsMultiple.
  MaskBits bits(Range rows, Range groups, Range outs) {
    const Range masks = {rows.begin / problem_.rows_per_mask,
                         (rows.end - 1) / problem_.rows_per_mask + 1};
    if (masks.begin != masks_.begin || masks.end != masks_.end) {
      if (problem_.mask_bits != nullptr) {
        copy(masks, groups, outs);
      } else {
        draw(masks, groups, outs);
      }
      masks_ = masks;
    }
    const int64_t mask_bytes = outs.size() * kGroupBytes;
    return {reinterpret_cast<const uint8_t*>(scratch_), masks.size() * mask_bytes, mask_bytes,
            masks.begin};
  }

 private:
  // Stored masks are [groups][masks][out_features rounded up][4 words].
  void copy(Range masks, Range groups, Range outs) const {
    const int64_t stored_masks = mask_count(problem_);
    const int64_t stored = stored_outs(problem_.out_features);
    const int64_t words = outs.size() * kGroupWords;
    uint32_t* out = scratch_;
    for (int64_t g = groups.begin; g < groups.end; ++g) {
      for (int64_t m = masks.begin; m < masks.end; ++m, out += words) {
        const int64_t first = (g * stored_masks + m) * stored + outs.begin;
        const uint32_t* bits = problem_.mask_bits + first * kGroupWords;
        __builtin_memcpy(out, bits, words * static_cast<int64_t>(sizeof(uint32_t)));
      }
    }
  }

  void draw(Range masks, Range groups, Range outs) const {
    const int64_t row_groups = group_count(problem_.in_features);
    const int64_t mask_groups = problem_.out_features * row_groups;
    const int64_t first = masks.begin * mask_groups + outs.begin * row_groups + groups.begin;
    draw_grid(problem_.rule,
              {static_cast<uint64_t>(first),
               {groups.size(), masks.size(), outs.size()},
               {1, static_cast<uint64_t>(mask_groups), static_cast<uint64_t>(row_groups)}},
              scratch_);
  }

  const DropConnectProblem& problem_;
  uint32_t* scratch_;
  Range masks_{-1, -1};
};

}  // namespace
}  // namespace fused_dropout
