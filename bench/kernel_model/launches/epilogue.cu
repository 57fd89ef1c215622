// Launches of bias + GELU + dropout + add of bfloat16 tensors, as
// ../../../csrc/cuda/bias_act_dropout_add.cu makes them.
#include "../../../csrc/cuda/bias_act_dropout_add.cuh"
#include "memory.h"

namespace fused_dropout {
namespace {

using T = __nv_bfloat16;

RngSource rng() { return rng_from_state(memory<int64_t>("rng_state", 2)); }

MaskRule rule_of(double p) { return make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits); }

}  // namespace

extern "C" {

int epilogue_forward(double p, int64_t rows, int64_t features) {
  namespace op = bias_act_dropout_add;
  const int64_t count = rows * features;
  const op::ForwardOperands<T> tensors = {memory<T>("input", count), memory<T>("bias", features),
                                          memory<T>("residual", count), memory<T>("result", count)};
  const op::Grid grid = op::forward_grid<T>(rule_of(p), count, features, tensors);
  return op::launch_forward<T>(rule_of(p), rng(), Activation::kGelu, 1 / (1 - p), grid, tensors,
                               nullptr);
}

// The gradients of the input, and of the bias where `to_bias` asks for it.
int epilogue_backward(double p, int64_t rows, int64_t features, int64_t to_bias) {
  namespace op = bias_act_dropout_add;
  const int64_t count = rows * features;
  op::BackwardOperands<T, float> tensors = {memory<T>("grad", count), memory<T>("input", count),
                                            memory<T>("bias", features), memory<T>("result", count),
                                            nullptr};
  const op::Grid grid = op::backward_grid<T>(rule_of(p), count, features, to_bias != 0, tensors);
  if (to_bias) tensors.sums = memory<float>("workspace", grid.slices * grid.columns);
  const int error = op::launch_backward<T>(rule_of(p), rng(), Activation::kGelu, 1 / (1 - p), grid,
                                           tensors, nullptr);
  if (error || !to_bias) return error;
  return op::launch_bias_sums<T>(grid, tensors.sums, memory<T>("d_bias", features), nullptr);
}

}  // extern "C"
}  // namespace fused_dropout
