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

// `sums` has room for twice as many as there are elements, which is never too little.
template <class T>
int backward(const int64_t* rng_state, double p, double scale, int activation, int64_t count,
             int64_t features, int64_t item_rows, int given, const T* grad, const T* in,
             const T* bias, T* d_input, Real<T>* sums, T* d_bias) {
  const MaskRule rule = rule_of(p);
  const BackwardOperands<T, Real<T>> tensors = {grad, if_given(given, kInput, in),
                                                if_given(given, kBias, bias), d_input,
                                                if_given(given, kSums, sums)};
  Grid grid = backward_grid<T>(rule, count, features, given & kSums, tensors);
  if (item_rows > 0) set_item_rows(&grid, item_rows, rule);
  const cudaError_t error =
      launch_backward<T>(rule, rng_from_state(rng_state), static_cast<Activation>(activation),
                         scale, grid, tensors, nullptr);
  if (error != cudaSuccess || tensors.sums == nullptr) return error;
  return launch_bias_sums<T>(grid, sums, d_bias, nullptr);
}

template <class T>
struct Entries {
  explicit Entries(const std::string& dtype)
      : forward_entry("epilogue_forward_" + dtype, forward<T>),
        backward_entry("epilogue_backward_" + dtype, backward<T>) {}

  worker::Registration forward_entry, backward_entry;
};

const Entries<float> float32_entries("float32");
const Entries<__nv_bfloat16> bfloat16_entries("bfloat16");
const Entries<__half> float16_entries("float16");
const Entries<double> float64_entries("float64");

}  // namespace
}  // namespace fused_dropout::bias_act_dropout_add
