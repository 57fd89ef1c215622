// IMPL(CUDA) of bias_act_dropout_add: checks and launches on the current stream.
//
// Workspace, freed to the caching allocator on return: the bias gradient's partial sums, about a
// float for 32 elements of a large tensor.

#include <tuple>

#include "../bias_act_dropout_add_arguments.h"
#include "bias_act_dropout_add.cuh"
#include "binding.h"

namespace fused_dropout::bias_act_dropout_add {
namespace {

Tensor contiguous_or_undefined(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? row_major(*tensor) : Tensor();
}

template <class T>
const T* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? data_of<T>(tensor) : nullptr;
}

int64_t features_of(const Tensor& tensor) { return tensor.dim() > 0 ? tensor.size(-1) : 1; }

Tensor forward(const Tensor& input, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& residual, const Tensor& rng_state, double p,
               std::string_view activation, double scale) {
  const auto guard = device_guard(input, "input");
  const Activation kind = activation_of(activation);
  check_bias_act_forward(input, bias, residual, p);
  const RngSource rng = rng_source(rng_state, device_of(input));
  if (input.numel() == 0) return new_like(input);
  const Tensor in = row_major(input);
  const Tensor row_bias = contiguous_or_undefined(bias);
  const Tensor addend = contiguous_or_undefined(residual);
  const Tensor out = new_like(in);
  const MaskRule rule = unseeded_rule(p, kStreamMask, kDefaultDigits);
  with_type(in, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const EpilogueForward<T> tensors = {data_or_null<T>(in), data_or_null<T>(row_bias),
                                        data_or_null<T>(addend),
                                        mutable_data_of<T>(out)};
    const EpilogueGrid grid = forward_grid<T>(rule, in.numel(), features_of(in), tensors);
    check_launch(
        launch_epilogue_forward<T>(rule, rng, kind, scale, grid, tensors, current_stream()));
  });
  return with_strides_like(out, input);
}

// (d_input, the bias gradient or an undefined tensor).
std::tuple<Tensor, Tensor> run_backward(const Tensor& grad_output,
                                        const std::optional<Tensor>& input,
                                        const std::optional<Tensor>& bias, const Tensor& rng_state,
                                        double p, std::string_view activation, double scale,
                                        bool to_bias) {
  const auto guard = device_guard(grad_output, "grad_output");
  const Activation kind = activation_of(activation);
  check_bias_act_backward(grad_output, input, bias, p, kind);
  const RngSource rng = rng_source(rng_state, device_of(grad_output));
  const int64_t features = features_of(grad_output);
  if (grad_output.numel() == 0) {
    return {new_like(grad_output), at::zeros({features}, grad_output.options())};
  }
  const bool is_plain = kind == Activation::kNone;
  const Tensor grad = row_major(grad_output);
  const Tensor in = is_plain ? Tensor() : contiguous_or_undefined(input);
  const Tensor row_bias = is_plain ? Tensor() : contiguous_or_undefined(bias);
  const Tensor d_input = new_like(grad);
  const Tensor d_bias = to_bias ? at::empty({features}, grad.options()) : Tensor();
  const MaskRule rule = unseeded_rule(p, kStreamMask, kDefaultDigits);
  with_type(grad, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    EpilogueBackward<T, Sum<T>> tensors = {data_or_null<T>(grad), data_or_null<T>(in),
                                           data_or_null<T>(row_bias),
                                           mutable_data_of<T>(d_input), nullptr};
    const EpilogueGrid grid = backward_grid<T>(rule, grad.numel(), features, to_bias, tensors);
    Tensor workspace;
    if (to_bias) {
      const auto type_of_sums = sizeof(Sum<T>) == sizeof(double) ? at::kDouble : at::kFloat;
      workspace = at::empty({grid.slices * grid.columns}, grad.options().dtype(type_of_sums));
      tensors.sums = mutable_data_of<Sum<T>>(workspace);
    }
    check_launch(
        launch_epilogue_backward<T>(rule, rng, kind, scale, grid, tensors, current_stream()));
    if (to_bias) {
      check_launch(launch_bias_sums<T>(
          grid, tensors.sums, mutable_data_of<T>(d_bias), current_stream()));
    }
  });
  return {with_strides_like(d_input, grad_output), d_bias};
}

Tensor d_input(const Tensor& grad_output, const std::optional<Tensor>& input,
               const std::optional<Tensor>& bias, const Tensor& rng_state, double p,
               std::string_view activation, double scale) {
  return std::get<0>(
      run_backward(grad_output, input, bias, rng_state, p, activation, scale, false));
}

std::tuple<Tensor, Tensor> d_both(const Tensor& grad_output, const std::optional<Tensor>& input,
                                  const std::optional<Tensor>& bias, const Tensor& rng_state,
                                  double p, std::string_view activation, double scale) {
  FUSED_DROPOUT_CHECK(grad_output.dim() > 0, "grad_output must have shape [..., features]");
  return run_backward(grad_output, input, bias, rng_state, p, activation, scale, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("bias_act_dropout_add", TORCH_BOX(&forward));
  m.impl("bias_act_dropout_add_d_input", TORCH_BOX(&d_input));
  m.impl("bias_act_dropout_add_d_both", TORCH_BOX(&d_both));
}

}  // namespace fused_dropout::bias_act_dropout_add
