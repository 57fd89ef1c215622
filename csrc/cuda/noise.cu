// IMPL(CUDA) of uniform_noise and normal_noise.
#include "../ops/noise.h"
#include "binding.h"
#include "noise.cuh"

namespace fused_dropout::noise {
namespace {

template <class Noise>
Tensor draw(const Tensor& rng_state, Sizes size, torch::headeronly::ScalarType type,
            int64_t first) {
  const auto guard = device_guard(rng_state, "rng_state");
  const Dtype dtype = check_arguments(size, type, first);
  const RngSource rng = rng_source(rng_state, device_of(rng_state));
  const Tensor noise = empty(size, dtype, rng_state);
  const MaskRule rule = unseeded_noise_rule();
  if (dtype == dtypes().float32) {
    check_launch(launch_noise<Noise>(rule, rng, mutable_data_of<float>(noise), noise.numel(), first,
                                     current_stream()));
  } else {
    check_launch(launch_noise<Noise>(rule, rng, mutable_data_of<double>(noise), noise.numel(),
                                     first, current_stream()));
  }
  return noise;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("uniform_noise", TORCH_BOX(&draw<UniformNoise>));
  m.impl("normal_noise", TORCH_BOX(&draw<NormalNoise>));
}

}  // namespace fused_dropout::noise
