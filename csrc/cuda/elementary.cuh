// Elementary functions by one name in float and in double.
#pragma once

#include <cmath>

#include "compat.h"

namespace fused_dropout {
namespace {

FUSED_DROPOUT_DEVICE float exp_of(float x) { return expf(x); }
FUSED_DROPOUT_DEVICE double exp_of(double x) { return exp(x); }
FUSED_DROPOUT_DEVICE float log_of(float x) { return logf(x); }
FUSED_DROPOUT_DEVICE double log_of(double x) { return log(x); }
FUSED_DROPOUT_DEVICE float square_root(float x) { return sqrtf(x); }
FUSED_DROPOUT_DEVICE double square_root(double x) { return sqrt(x); }
// sin(2 pi u) and cos(2 pi u); twice u is exact.
FUSED_DROPOUT_DEVICE void sine_cosine_of_turn(float u, float* sine, float* cosine) {
  sincospif(2 * u, sine, cosine);
}
FUSED_DROPOUT_DEVICE void sine_cosine_of_turn(double u, double* sine, double* cosine) {
  sincospi(2 * u, sine, cosine);
}

}  // namespace
}  // namespace fused_dropout
