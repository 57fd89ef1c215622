// The zoneout operators: element k of the output is that of `input` where bit k of the mask keeps
// it, else that of `previous`. The gradients put each element of the output's where it came from,
// and 0 into the other.
#pragma once

#include "checks.h"

namespace fused_dropout::zoneout {

constexpr const char* kSchemas[] = {
    "zoneout(Tensor input, Tensor previous, Tensor rng_state, float p) -> Tensor",
    "zoneout_backward(Tensor grad, Tensor rng_state, float p) -> (Tensor, Tensor)",
};

inline void check_arguments(const Tensor& input, const Tensor& previous, double p) {
  kernel_type(input);
  check_probability(p);
  check_operand(previous, "previous", input.sizes(), input);
}

inline void check_arguments(const Tensor& grad, double p) {
  kernel_type(grad);
  check_probability(p);
}

}  // namespace fused_dropout::zoneout
