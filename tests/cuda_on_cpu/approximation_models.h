// The instructions of csrc/cuda/approximations.cuh in C++: each result is wrong by as much as
// NVIDIA allows the hardware, up or down as the argument's bits have it. So tests see whether the
// kernels can live with the worst GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "intrinsics.h"

namespace emulator {

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// 1 or -1, which neighbouring numbers share as little as distant ones.
inline double direction(float x) {
  const uint32_t mixed = __float_as_uint(x) * 0x9E3779B1u;
  return (mixed ^ mixed >> 15) & 1 ? 1.0 : -1.0;
}

// Infinite results, NaN and 0 are exact.
inline float wrong_by(double relative, float x, double exact) {
  return flushed(static_cast<float>(exact * (1.0 + relative * direction(x))));
}

}  // namespace emulator

namespace fused_dropout {

inline float exp2_approx(float x) {
  x = emulator::flushed(x);
  return emulator::wrong_by(0x1p-22, x, std::exp2(static_cast<double>(x)));
}

inline float log2_approx(float x) {
  x = emulator::flushed(x);
  const double exact = std::log2(static_cast<double>(x));
  const bool absolute = x > 0.5f && x < 2.0f;
  if (absolute) return static_cast<float>(exact + 0x1p-22 * emulator::direction(x));
  return emulator::wrong_by(0x1p-22, x, exact);
}

inline float reciprocal_approx(float x) {
  x = emulator::flushed(x);
  return emulator::wrong_by(0x1p-23, x, 1.0 / static_cast<double>(x));
}

inline float reciprocal_root_approx(float x) {
  x = emulator::flushed(x);
  return emulator::wrong_by(0x1.13p-23, x, 1.0 / std::sqrt(static_cast<double>(x)));
}

}  // namespace fused_dropout
