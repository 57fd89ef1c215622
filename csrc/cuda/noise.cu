// IMPL(CUDA) of uniform_noise and normal_noise.

#include "noise_binding.h"

namespace fused_dropout::noise {
namespace {

template <class Noise>
Tensor draw_noise(const Tensor& rng_state, Sizes size, at::ScalarType dtype) {
  const auto guard = device_guard(rng_state, "rng_state");
  check_noise_arguments(size, dtype);
  const RngSource rng = rng_source(rng_state, device_of(rng_state));
  const Tensor noise = at::empty(size, rng_state.options().dtype(dtype));
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

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("uniform_noise", TORCH_BOX(&draw_noise<UniformNoise>));
  m.impl("normal_noise", TORCH_BOX(&draw_noise<NormalNoise>));
}

}  // namespace fused_dropout::noise
