// The mask operators: the bits themselves, as bytes 0 and 1 or packed into words.
#pragma once

#include "checks.h"

namespace fused_dropout::mask {

// The mask's device is that of rng_state.
constexpr const char* kSchemas[] = {
    "mask(Tensor rng_state, SymInt rows, SymInt cols, float p, int stream, int digits) -> Tensor",
    "packed_mask(Tensor rng_state, SymInt rows, SymInt cols, float p, int stream, int digits)"
    " -> Tensor",
};

inline void check_arguments(int64_t rows, int64_t cols, double p, int64_t stream, int64_t digits) {
  check_probability(p);
  FUSED_DROPOUT_CHECK(stream >= 0 && stream <= 127, "stream must be in [0, 127], got ", stream);
  FUSED_DROPOUT_CHECK(digits >= 1 && digits <= 32, "digits must be in [1, 32], got ", digits);
  check_mask_size(rows, cols);
}

}  // namespace fused_dropout::mask
