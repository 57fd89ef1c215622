// IMPL(CPU) of the noise operators.
#include "noise.h"

#include "../ops/noise.h"
#include "dispatch.h"
#include "parallel_noise.h"

namespace fused_dropout::noise {
namespace {

template <class R>
using Draw = void (*)(const NoiseRun&, R*);

Tensor draw(const Tensor& rng_state, Sizes size, torch::headeronly::ScalarType type, int64_t start,
            Draw<float> draw_float, Draw<double> draw_double) {
  const Dtype dtype = check_arguments(size, type, start);
  const uint64_t first_block = static_cast<uint64_t>(start / kGroupColumns);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  Tensor noise = empty(size, dtype, rng_state);
  parallel_noise(rule, noise.numel(), [&](NoiseRun run, int64_t first) {
    run.first_block += first_block;
    void* const out = mutable_elements_from(noise, first);
    if (dtype == dtypes().float32) {
      draw_float(run, static_cast<float*>(out));
    } else {
      draw_double(run, static_cast<double*>(out));
    }
  });
  return noise;
}

Tensor uniforms(const Tensor& rng_state, Sizes size, torch::headeronly::ScalarType dtype,
                int64_t first) {
  const Kernels& table = kernels<Kernels>();
  return draw(rng_state, size, dtype, first, table.uniforms_float, table.uniforms_double);
}

Tensor normals(const Tensor& rng_state, Sizes size, torch::headeronly::ScalarType dtype,
               int64_t first) {
  const Kernels& table = kernels<Kernels>();
  return draw(rng_state, size, dtype, first, table.normals_float, table.normals_double);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("uniform_noise", TORCH_BOX(&uniforms));
  m.impl("normal_noise", TORCH_BOX(&normals));
}

}  // namespace fused_dropout::noise
