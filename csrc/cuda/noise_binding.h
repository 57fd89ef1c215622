// What the CUDA bindings of the ops on continuous noise share.
#pragma once

#include "../ops/row_major.h"
#include "binding.h"
#include "noise.cuh"

namespace fused_dropout {

// The rule but for its seed and offset, which the device fills in.
inline MaskRule unseeded_noise_rule() { return make_noise_rule(0, 0); }

}  // namespace fused_dropout
