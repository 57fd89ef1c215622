// IMPL(CUDA) of concrete dropout. logit_p stays on the device: nothing waits for it.
//
// Workspace, freed to the caching allocator on return: the partial sums of logit_p's gradient.
#include <tuple>

#include "../ops/concrete_dropout.h"
#include "../ops/row_major.h"
#include "binding.h"
#include "concrete_dropout.cuh"

namespace fused_dropout::concrete_dropout {
namespace {

template <class T>
Source<Real<T>> source_of(const Tensor& logit_p, double temperature) {
  return {data_of<Real<T>>(logit_p), static_cast<Real<T>>(1.0 / temperature)};
}

Tensor forward(const Tensor& input, const Tensor& logit_p, const Tensor& rng_state,
               double temperature) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, logit_p, temperature);
  const RngSource rng = rng_source(rng_state, device_of(input));
  const Tensor in = row_major(input);
  const Tensor out = is_same(in, input) ? new_like(input) : in;  // a copy is ours to change
  with_type(in, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    check_launch(launch_forward<T>(unseeded_noise_rule(), rng, source_of<T>(logit_p, temperature),
                                   data_of<T>(in), mutable_data_of<T>(out), in.numel(),
                                   current_stream()));
  });
  return laid_out_like(input, out);
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                    const Tensor& logit_p, const Tensor& rng_state,
                                    double temperature) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, logit_p, temperature);
  check_operand(grad_output, "grad_output", input.sizes(), input);
  const RngSource rng = rng_source(rng_state, device_of(input));
  const Tensor grad = row_major(grad_output);
  const Tensor in = row_major(input);
  const Tensor d_in = new_like(in);
  const Tensor d_logit = new_like(logit_p);
  with_type(in, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t blocks = noise_blocks<T>(in.numel()).x;
    const Tensor partial = empty({blocks}, dtype_of(logit_p), logit_p);
    const Gradients<T> tensors = {data_of<T>(grad), data_of<T>(in), mutable_data_of<T>(d_in),
                                  mutable_data_of<Real<T>>(partial), in.numel()};
    check_launch(launch_backward<T>(unseeded_noise_rule(), rng, source_of<T>(logit_p, temperature),
                                    tensors, mutable_data_of<Real<T>>(d_logit), current_stream()));
  });
  return {laid_out_like(input, d_in), d_logit};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("concrete_dropout", TORCH_BOX(&forward));
  m.impl("concrete_dropout_backward", TORCH_BOX(&backward));
}

}  // namespace fused_dropout::concrete_dropout
