// IMPL(CUDA) of Gaussian dropout.
#include "../ops/gaussian_dropout.h"
#include "../ops/row_major.h"
#include "binding.h"
#include "gaussian_dropout.cuh"

namespace fused_dropout::gaussian_dropout {
namespace {

// Both are in row-major order; `out` may be `in`.
void apply_into(const Tensor& out, const Tensor& in, const RngSource& rng, double sigma) {
  with_type(in, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    check_launch(launch<T>(unseeded_noise_rule(), rng, sigma, data_of<T>(in),
                           mutable_data_of<T>(out), in.numel(), current_stream()));
  });
}

Tensor forward(const Tensor& input, const Tensor& rng_state, double sigma) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, sigma);
  const RngSource rng = rng_source(rng_state, device_of(input));
  const Tensor in = row_major(input);
  const Tensor out = is_same(in, input) ? new_like(input) : in;  // a copy is ours to change
  apply_into(out, in, rng, sigma);
  return laid_out_like(input, out);
}

Tensor forward_(const Tensor& input, const Tensor& rng_state, double sigma) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, sigma);
  const RngSource rng = rng_source(rng_state, device_of(input));
  change_in_place(input, [&](const Tensor& dense) { apply_into(dense, dense, rng, sigma); });
  return input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("gaussian_dropout", TORCH_BOX(&forward));
  m.impl("gaussian_dropout_", TORCH_BOX(&forward_));
}

}  // namespace fused_dropout::gaussian_dropout
