// IMPL(CUDA) of bias_act_dropout_add: checks and launches on the current stream.
//
// Workspace, freed to the caching allocator on return: the bias gradient's partial sums, at most a
// float for 16 elements of a large tensor.
#include <tuple>

#include "../ops/bias_act_dropout_add.h"
#include "../ops/row_major.h"
#include "bias_act_dropout_add.cuh"
#include "binding.h"

namespace fused_dropout::bias_act_dropout_add {
namespace {

int64_t features_of(const Tensor& tensor) { return tensor.dim() > 0 ? tensor.size(-1) : 1; }

Tensor forward(const Tensor& input, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& residual, const Tensor& rng_state, double p,
               std::string_view activation, double scale) {
  const auto guard = device_guard(input, "input");
  const Activation kind = activation_of(activation);
  check_forward(input, bias, residual, p);
  const RngSource rng = rng_source(rng_state, device_of(input));
  if (input.numel() == 0) return new_like(input);
  const Tensor in = row_major(input);
  const std::optional<Tensor> row_bias = row_major(bias);
  const std::optional<Tensor> addend = row_major(residual);
  const Tensor out = new_like(in);
  const MaskRule rule = unseeded_rule(p, kStreamMask, kDefaultDigits);
  with_type(in, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const ForwardOperands<T> tensors = {data_of<T>(in), data_or_null<T>(row_bias),
                                        data_or_null<T>(addend), mutable_data_of<T>(out)};
    const Grid grid = forward_grid<T>(rule, in.numel(), features_of(in), tensors);
    check_launch(launch_forward<T>(rule, rng, kind, scale, grid, tensors, current_stream()));
  });
  return laid_out_like(input, out);
}

struct Gradients {
  Tensor d_input;
  std::optional<Tensor> d_bias;
};

Gradients run_backward(const Tensor& grad_output, const std::optional<Tensor>& input,
                       const std::optional<Tensor>& bias, const Tensor& rng_state, double p,
                       std::string_view activation, double scale, bool to_bias) {
  const auto guard = device_guard(grad_output, "grad_output");
  const Activation kind = activation_of(activation);
  check_backward(grad_output, input, bias, p, kind);
  const RngSource rng = rng_source(rng_state, device_of(grad_output));
  const int64_t features = features_of(grad_output);
  if (grad_output.numel() == 0) {
    return {new_like(grad_output), full({features}, 0, dtype_of(grad_output), grad_output)};
  }
  const bool is_plain = kind == Activation::kNone;
  const Tensor grad = row_major(grad_output);
  const auto in = is_plain ? std::nullopt : row_major(input);
  const auto row_bias = is_plain ? std::nullopt : row_major(bias);
  const Tensor d_input = new_like(grad);
  std::optional<Tensor> d_bias;
  if (to_bias) d_bias = empty({features}, dtype_of(grad), grad);
  const MaskRule rule = unseeded_rule(p, kStreamMask, kDefaultDigits);
  with_type(grad, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    BackwardOperands<T, Real<T>> tensors = {data_of<T>(grad),
                                            data_or_null<T>(in),
                                            data_or_null<T>(row_bias),
                                            mutable_data_of<T>(d_input),
                                            to_bias ? mutable_data_of<T>(*d_bias) : nullptr,
                                            nullptr};
    const Grid grid = backward_grid<T>(rule, grad.numel(), features, tensors);
    std::optional<Tensor> workspace;
    if (to_bias && workspace_size(grid) > 0) {
      workspace = empty({workspace_size(grid)}, sum_dtype(grad), grad);
      tensors.sums = mutable_data_of<Real<T>>(*workspace);
    }
    check_launch(launch_backward<T>(rule, rng, kind, scale, grid, tensors, current_stream()));
  });
  return {laid_out_like(grad_output, d_input), d_bias};
}

Tensor d_input(const Tensor& grad_output, const std::optional<Tensor>& input,
               const std::optional<Tensor>& bias, const Tensor& rng_state, double p,
               std::string_view activation, double scale) {
  return run_backward(grad_output, input, bias, rng_state, p, activation, scale, false).d_input;
}

std::tuple<Tensor, Tensor> d_both(const Tensor& grad_output, const std::optional<Tensor>& input,
                                  const std::optional<Tensor>& bias, const Tensor& rng_state,
                                  double p, std::string_view activation, double scale) {
  check_has_features(grad_output);
  const Gradients both =
      run_backward(grad_output, input, bias, rng_state, p, activation, scale, true);
  return {both.d_input, *both.d_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("bias_act_dropout_add", TORCH_BOX(&forward));
  m.impl("bias_act_dropout_add_d_input", TORCH_BOX(&d_input));
  m.impl("bias_act_dropout_add_d_both", TORCH_BOX(&d_both));
}

}  // namespace fused_dropout::bias_act_dropout_add
