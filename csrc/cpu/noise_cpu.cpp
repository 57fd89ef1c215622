// IMPL(CPU) of uniform_noise and normal_noise.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "../noise_arguments.h"
#include "noise_cpu.h"

namespace fused_dropout {
namespace {

template <class R>
using Draw = void (*)(const NoiseRun&, R*);

at::Tensor draw_noise(const at::Tensor& rng_state, at::IntArrayRef size, at::ScalarType dtype,
                      Draw<float> draw_float, Draw<double> draw_double) {
  check_noise_arguments(size, dtype);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  at::Tensor noise = at::empty(size, dtype);
  parallel_noise(rule, noise.numel(), [&](const NoiseRun& run, int64_t first) {
    void* const out = mutable_elements_from(noise, first);
    if (dtype == at::kFloat) {
      draw_float(run, static_cast<float*>(out));
    } else {
      draw_double(run, static_cast<double*>(out));
    }
  });
  return noise;
}

at::Tensor uniform_noise_cpu(const at::Tensor& rng_state, at::IntArrayRef size,
                             at::ScalarType dtype) {
  const NoiseKernels& table = kernels().noise;
  return draw_noise(rng_state, size, dtype, table.uniforms_float, table.uniforms_double);
}

at::Tensor normal_noise_cpu(const at::Tensor& rng_state, at::IntArrayRef size,
                            at::ScalarType dtype) {
  const NoiseKernels& table = kernels().noise;
  return draw_noise(rng_state, size, dtype, table.normals_float, table.normals_double);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("uniform_noise", uniform_noise_cpu);
  m.impl("normal_noise", normal_noise_cpu);
}

}  // namespace fused_dropout
