// Where the CPU operators' random states come from.
#pragma once

#include <ATen/Functions.h>

#include <limits>
#include <optional>

namespace fused_dropout {

// A fresh rng_state from `generator`, or from torch's default one. It is what torch.randint draws,
// which fused_dropout/rng.py calls where the operator cannot.
inline at::Tensor draw_cpu_state(const std::optional<at::Generator>& generator) {
  using Limits = std::numeric_limits<int64_t>;
  return at::randint(Limits::min(), Limits::max(), {2}, generator, at::kLong);
}

}  // namespace fused_dropout
