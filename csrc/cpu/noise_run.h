// What the kernels of all ops on continuous noise work on.
#pragma once

#include "kernel_types.h"

namespace fused_dropout {

// `count` elements, contiguous in memory, from block `first_block` of 128 (kGroupColumns) on.
// `rule` is make_noise_rule's.
struct NoiseRun {
  MaskRule rule;
  uint64_t first_block;
  int64_t count;
};

}  // namespace fused_dropout
