// What dropout does to a block of a group's 128 elements, once its bits are drawn.
#pragma once

#include "conversions.h"

namespace fused_dropout {
namespace {

template <class R>
struct AffineVectors {
  Vec<R> scale, shift, fill;
  bool is_shifted;  // adding 0 would turn -0 into 0
  explicit AffineVectors(const AffineMap& map)
      : scale(broadcast(static_cast<R>(map.scale))),
        shift(broadcast(static_cast<R>(map.shift))),
        fill(broadcast(static_cast<R>(map.fill))),
        is_shifted(map.shift != 0) {}
  Vec<R> mapped(Vec<R> x) const { return is_shifted ? multiply_add(scale, x, shift) : scale * x; }
};

// One block. Whatever stands in `in`, a NaN too, does not reach the result of a dropped element.
template <class T>
FUSED_DROPOUT_INLINE void apply_block(const AffineVectors<Real<T>>& map, const uint32_t* words,
                                      const T* in, const T* residual, T* out) {
  constexpr int kLanes = Vec<Real<T>>::kLanes;
  const uint8_t* const bits = reinterpret_cast<const uint8_t*>(words);
  for (int chunk = 0; chunk < kGroupColumns / kLanes; ++chunk) {
    const int64_t k = chunk * kLanes;
    Vec<Real<T>> x = map.mapped(widen_vector(in + k));
    x = select_kept(bits, chunk, x, map.fill);
    if (residual != nullptr) x = x + widen_vector(residual + k);
    narrow_vector(x, out + k);
  }
}

}  // namespace
}  // namespace fused_dropout
