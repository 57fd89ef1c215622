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
      fill(masks, groups, outs);
      masks_ = masks;
    }
    const int64_t mask_bytes = outs.size() * kGroupBytes;
    return {reinterpret_cast<const uint8_t*>(scratch_), masks.size() * mask_bytes, mask_bytes,
            masks.begin};
  }

 private:
  void fill(Range masks, Range groups, Range outs) {
    uint32_t* out = scratch_;
    for (int64_t g = groups.begin; g < groups.end; ++g) {
      for (int64_t m = masks.begin; m < masks.end; ++m) {
        if (problem_.mask_bits != nullptr) {
          __builtin_memcpy(out, stored(g, m, outs.begin), outs.size() * kGroupBytes);
        } else {
          draw(g, m, outs, out);
        }
        out += outs.size() * kGroupWords;
      }
    }
  }

  // Stored masks are [groups][masks][out_features rounded up][4 words].
  const uint32_t* stored(int64_t group, int64_t mask, int64_t out) const {
    const int64_t masks = mask_count(problem_);
    const int64_t outs = stored_outs(problem_.out_features);
    return problem_.mask_bits + ((group * masks + mask) * outs + out) * kGroupWords;
  }

  void draw(int64_t group, int64_t mask, Range outs, uint32_t* out) const {
    const int64_t row_groups = group_count(problem_.in_features);
    const int64_t first = (mask * problem_.out_features + outs.begin) * row_groups + group;
    draw_groups(problem_.rule, static_cast<uint64_t>(first), static_cast<uint64_t>(row_groups),
                outs.size(), out);
  }

  const DropConnectProblem& problem_;
  uint32_t* scratch_;
  Range masks_{-1, -1};
};

}  // namespace
}  // namespace fused_dropout
