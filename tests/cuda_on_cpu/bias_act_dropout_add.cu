// Entries of the transformer epilogue's kernels, one for each direction and dtype. `given` says
// which of the optional tensors are there; `item_rows` overrides the rows that a warp walks down,
// unless it is 0.
#include "../../csrc/cuda/bias_act_dropout_add.cuh"
#include "entries.h"

namespace fused_dropout::bias_act_dropout_add {
namespace {

enum Given { kBias = 1, kAddend = 2, kInput = 4, kSums = 8 };

template <class P>
P* if_given(int given, Given which, P* pointer) {
  return given & which ? pointer : nullptr;
}

MaskRule rule_of(double p) { return make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits); }

template <class T>
int forward(const int64_t* rng_state, double p, double scale, int activation, int64_t count,
            int64_t features, int64_t item_rows, int given, const T* in, const T* bias,
            const T* residual, T* out) {
  const MaskRule rule = rule_of(p);
  const ForwardOperands<T> tensors = {in, if_given(given, kBias, bias),
                                      if_given(given, kAddend, residual), out};
  Grid grid = forward_grid<T>(rule, count, features, tensors);
  if (item_rows > 0) set_item_rows(&grid, item_rows, rule);
  return launch_forward<T>(rule, rng_from_state(rng_state), static_cast<Activation>(activation),
                           scale, grid, tensors, nullptr);
}

// `sums` has room for `room` numbers. Returns -1 where the kernels want more.
template <class T>
int backward(const int64_t* rng_state, double p, double scale, int activation, int64_t count,
             int64_t features, int64_t item_rows, int given, const T* grad, const T* in,
             const T* bias, T* d_input, Real<T>* sums, int64_t room, T* d_bias) {
  const MaskRule rule = rule_of(p);
  BackwardOperands<T, Real<T>> tensors = {
      grad,    if_given(given, kInput, in),    if_given(given, kBias, bias),
      d_input, if_given(given, kSums, d_bias), nullptr};
  Grid grid = backward_grid<T>(rule, count, features, tensors);
  if (item_rows > 0) set_item_rows(&grid, item_rows, rule);
  if (tensors.d_bias != nullptr && workspace_size(grid) > 0) {
    if (workspace_size(grid) > room) return -1;
    tensors.sums = sums;
  }
  return launch_backward<T>(rule, rng_from_state(rng_state), static_cast<Activation>(activation),
                            scale, grid, tensors, nullptr);
}

// Numbers that the bias gradient's workspace takes.
template <class T>
int workspace(double p, int64_t count, int64_t features) {
  alignas(16) static T d_bias[1];
  const BackwardOperands<T, Real<T>> tensors = {nullptr, nullptr, nullptr,
                                                nullptr, d_bias,  nullptr};
  return static_cast<int>(workspace_size(backward_grid<T>(rule_of(p), count, features, tensors)));
}

template <class T>
struct Entries {
  explicit Entries(const std::string& dtype)
      : forward_entry("epilogue_forward_" + dtype, forward<T>),
        backward_entry("epilogue_backward_" + dtype, backward<T>),
        workspace_entry("epilogue_workspace_" + dtype, workspace<T>) {}

  worker::Registration forward_entry, backward_entry, workspace_entry;
};

const Entries<float> float32_entries("float32");
const Entries<__nv_bfloat16> bfloat16_entries("bfloat16");
const Entries<__half> float16_entries("float16");
const Entries<double> float64_entries("float64");

}  // namespace
}  // namespace fused_dropout::bias_act_dropout_add
