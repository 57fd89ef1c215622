// Launches of Gaussian and of concrete dropout of bfloat16 tensors, as
// ../../../csrc/cuda/gaussian_dropout.cu and concrete_dropout.cu make them.
#include "../../../csrc/cuda/concrete_dropout.cuh"
#include "../../../csrc/cuda/gaussian_dropout.cuh"
#include "memory.h"

namespace fused_dropout {
namespace {

using T = __nv_bfloat16;

RngSource rng() { return rng_from_state(memory<int64_t>("rng_state", 2)); }

MaskRule noise_rule() { return make_mask_rule(0, 0, kStreamNoise, 0.5, kDefaultDigits); }

concrete_dropout::Source<float> source() { return {memory<float>("logit_p", 1), 10.0f}; }

}  // namespace

extern "C" {

int noise_gaussian(double p, int64_t count) {
  return gaussian_dropout::launch<T>(noise_rule(), rng(), p, memory<T>("input", count),
                                     memory<T>("result", count), count, nullptr);
}

int noise_concrete_forward(int64_t count) {
  return concrete_dropout::launch_forward<T>(noise_rule(), rng(), source(),
                                             memory<T>("input", count), memory<T>("result", count),
                                             count, nullptr);
}

// The gradients of the input and of the logit.
int noise_concrete_backward(int64_t count) {
  const concrete_dropout::Gradients<T> tensors = {
      memory<T>("grad", count), memory<T>("input", count), memory<T>("result", count),
      memory<float>("workspace", noise_blocks<T>(count).x), count};
  return concrete_dropout::launch_backward<T>(noise_rule(), rng(), source(), tensors,
                                              memory<float>("d_logit", 1), nullptr);
}

}  // extern "C"
}  // namespace fused_dropout
