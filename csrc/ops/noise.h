// The noise operators: the noise itself in row-major order; see common/noise.h. `first` is the
// number of the first element in the stream, so that a long tensor can be drawn a part at a time.
#pragma once

#include "checks.h"

namespace fused_dropout::noise {

constexpr const char* kSchemas[] = {
    "uniform_noise(Tensor rng_state, SymInt[] size, ScalarType dtype,"
    " SymInt first=0) -> Tensor",
    "normal_noise(Tensor rng_state, SymInt[] size, ScalarType dtype,"
    " SymInt first=0) -> Tensor",
};

// Noise comes in the dtypes that hold it exactly; a short one would round 1 - 2^-24 to 1.
inline Dtype check_arguments(Sizes size, torch::headeronly::ScalarType dtype, int64_t first) {
  using torch::headeronly::ScalarType;
  FUSED_DROPOUT_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                      "noise has dtype float32 or float64, got ", dtype);
  for (const int64_t length : size) {
    FUSED_DROPOUT_CHECK(length >= 0, "size must be at least 0 everywhere, got ", size);
  }
  FUSED_DROPOUT_CHECK(first >= 0 && first % kGroupColumns == 0, "first must be a multiple of ",
                      kGroupColumns, ", at least 0, got ", first);
  return dtype == ScalarType::Float ? dtypes().float32 : dtypes().float64;
}

}  // namespace fused_dropout::noise
