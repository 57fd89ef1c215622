// IMPL(CUDA) of Gaussian dropout.
#include <torch/library.h>

#include <tuple>

#include "gaussian_dropout.cuh"
#include "noise_binding.h"

namespace fused_dropout {
namespace {

using at::Tensor;

// Both are in row-major order; `out` may be `in`.
void gaussian_dropout_into(const Tensor& out, const Tensor& in, const RngSource& rng,
                           double sigma) {
  with_type(in, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    check_launch(launch_gaussian_dropout<T>(unseeded_noise_rule(), rng, sigma, data_of<T>(in),
                                            mutable_data_of<T>(out), in.numel(), current_stream()));
  });
}

Tensor run_gaussian_dropout(const Tensor& input, const RngSource& rng, double sigma) {
  const Tensor in = input.contiguous();
  const Tensor out = in.is_same(input) ? at::empty_like(input) : in;  // a copy is ours to change
  gaussian_dropout_into(out, in, rng, sigma);
  return laid_out_like(input, out);
}

void run_gaussian_dropout_(const Tensor& input, const RngSource& rng, double sigma) {
  change_in_place(input,
                  [&](const Tensor& dense) { gaussian_dropout_into(dense, dense, rng, sigma); });
}

Tensor gaussian_dropout_cuda(const Tensor& input, const Tensor& rng_state, double sigma) {
  const auto guard = device_guard(input, "input");
  check_gaussian_dropout_arguments(input, sigma);
  return run_gaussian_dropout(input, rng_on_device(rng_state, input.device()), sigma);
}

std::tuple<Tensor, Tensor> drawn_gaussian_dropout_cuda(
    const Tensor& input, const std::optional<at::Generator>& generator, double sigma) {
  const auto guard = device_guard(input, "input");
  check_gaussian_dropout_arguments(input, sigma);
  const DrawnRng rng = draw_on_device(generator, input, input.numel() > 0);
  return {run_gaussian_dropout(input, rng.source, sigma), rng.state};
}

void gaussian_dropout_cuda_(const Tensor& input, const Tensor& rng_state, double sigma) {
  const auto guard = device_guard(input, "input");
  check_gaussian_dropout_arguments(input, sigma);
  run_gaussian_dropout_(input, rng_on_device(rng_state, input.device()), sigma);
}

Tensor drawn_gaussian_dropout_cuda_(const Tensor& input,
                                    const std::optional<at::Generator>& generator, double sigma) {
  const auto guard = device_guard(input, "input");
  check_gaussian_dropout_arguments(input, sigma);
  const DrawnRng rng = draw_on_device(generator, input, input.numel() > 0);
  run_gaussian_dropout_(input, rng.source, sigma);
  return rng.state;
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("gaussian_dropout", gaussian_dropout_cuda);
  m.impl("gaussian_dropout.generator", drawn_gaussian_dropout_cuda);
  m.impl("gaussian_dropout_", gaussian_dropout_cuda_);
  m.impl("gaussian_dropout_.generator", drawn_gaussian_dropout_cuda_);
}

}  // namespace fused_dropout
