// IMPL(CUDA) of uniform_noise and normal_noise.
#include <torch/library.h>

#include "noise_binding.h"

namespace fused_dropout {
namespace {

template <class Noise>
at::Tensor draw_noise(const at::Tensor& rng_state, at::IntArrayRef size, at::ScalarType dtype) {
  const auto guard = device_guard(rng_state, "rng_state");
  check_noise_arguments(size, dtype);
  const RngSource rng = rng_source(rng_state, rng_state.device());
  const at::Tensor noise = at::empty(size, rng_state.options().dtype(dtype));
  const MaskRule rule = unseeded_noise_rule();
  if (dtype == at::kFloat) {
    check_launch(launch_noise<Noise>(rule, rng, mutable_data_of<float>(noise), noise.numel(),
                                     current_stream()));
  } else {
    check_launch(launch_noise<Noise>(rule, rng, mutable_data_of<double>(noise), noise.numel(),
                                     current_stream()));
  }
  return noise;
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("uniform_noise", draw_noise<UniformNoise>);
  m.impl("normal_noise", draw_noise<NormalNoise>);
}

}  // namespace fused_dropout
