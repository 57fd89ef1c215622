// What the bodies of bias_act_dropout_add offer: csrc/cpu/bias_act_dropout_add_body.h fills the
// table, bias_act_dropout_add_cpu.cpp calls it.
#pragma once

#include "kernel_types.h"

namespace fused_dropout {

// Element k of the tensors has column k % features, and a kept element is multiplied by `scale`.
struct BiasActSettings {
  MaskRule rule;
  double scale;
  Activation activation;
  int64_t features;
};

// A stretch of elements, contiguous in memory. `bias`, of all features, and `residual` may be null.
struct BiasActForward {
  const void* in;
  const void* bias;
  const void* residual;
  void* out;
  int64_t count;
};

// The same for the gradients; `in` is null without an activation. `sums`, if not null, gets the
// bias gradient's share: the element that is k places from the first is added to
// sums[k % features], a float (double for double).
struct BiasActBackward {
  const void* grad;
  const void* in;
  const void* bias;
  void* d_input;
  void* sums;
  int64_t count;
};

struct BiasActKernels {
  // The first element is the first one of mask group first_group.
  void (*forward[kScalarTypes])(const BiasActSettings& settings, const BiasActForward& run,
                                int64_t first_group);
  void (*backward[kScalarTypes])(const BiasActSettings& settings, const BiasActBackward& run,
                                 int64_t first_group);
};

}  // namespace fused_dropout
