// What the kernels of bias_act_dropout_add offer: simd/ops/bias_act_dropout_add.h fills the table,
// bias_act_dropout_add.cpp calls it.
#pragma once

#include "kernel_types.h"

namespace fused_dropout::bias_act_dropout_add {

// Element k of the tensors has column k % features, and a kept element is multiplied by `scale`.
struct Settings {
  MaskRule rule;
  double scale;
  Activation activation;
  int64_t features;
};

// A stretch of elements, contiguous in memory. `bias`, of all features, and `residual` may be null.
struct ForwardRun {
  const void* in;
  const void* bias;
  const void* residual;
  void* out;
  int64_t count;
};

// The same for the gradients; `in` is null without an activation. `sums`, if not null, gets the
// bias gradient's share: the element that is k places from the first is added to
// sums[k % features], a float (double for double).
struct BackwardRun {
  const void* grad;
  const void* in;
  const void* bias;
  void* d_input;
  void* sums;
  int64_t count;
};

struct Kernels {
  // The first element is the first one of mask group first_group.
  void (*forward[kScalarTypes])(const Settings& settings, const ForwardRun& run,
                                int64_t first_group);
  void (*backward[kScalarTypes])(const Settings& settings, const BackwardRun& run,
                                 int64_t first_group);
};

}  // namespace fused_dropout::bias_act_dropout_add
