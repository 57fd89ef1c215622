// What the kernels of zoneout offer: simd/ops/zoneout.h fills the table, zoneout.cpp calls it.
#pragma once

#include "dropout.h"

namespace fused_dropout::zoneout {

using dropout::ColumnBits;

// A stretch of elements, contiguous in memory: out = kept ? input : previous.
struct Selection {
  const void* input;
  const void* previous;
  void* out;
  int64_t count;
};

// The gradients: d_input = kept ? grad : 0, and d_previous = kept ? 0 : grad.
struct Split {
  const void* grad;
  void* d_input;
  void* d_previous;
  int64_t count;
};

template <class Run>
struct Pass {
  // Draws the bits of groups first_group, first_group + 1, ... and applies them.
  void (*draw_and_apply[kScalarTypes])(const MaskRule& rule, const Run& run, uint64_t first_group);
  // Element k has bit k of `bits`, which are whole groups.
  void (*apply[kScalarTypes])(const Run& run, const uint32_t* bits);
  // As dropout's.
  void (*apply_columns[kScalarTypes])(const Run& run, const ColumnBits& tile, const uint32_t* bits);
};

struct Kernels {
  Pass<Selection> forward;
  Pass<Split> backward;
};

}  // namespace fused_dropout::zoneout
