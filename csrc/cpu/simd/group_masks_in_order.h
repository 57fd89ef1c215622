// DropConnect's masks where a vector's bits can be used as they lie in memory: on AVX-512, whose
// mask registers load 16 of them, and in plain C++. (The layout of group_masks_avx2.h would take 3
// uops of the two ports that have 512 bits, where a mask register and the masked FMA take 2.)
#pragma once

#include "../../common/mask.h"
#include "prelude.h"

namespace fused_dropout {
namespace {

// The mask of a row and an output feature over a group of columns: its 16 bytes, of which step k
// works on those of vector k.
constexpr bool kMasksOperands = false;
constexpr int kMaskBytes = kGroupBytes;

template <class R>
struct GroupMask {
  const uint8_t* bits;
};

template <class R>
FUSED_DROPOUT_INLINE GroupMask<R> expand_mask(const uint8_t* bits) {
  return {bits};
}

// sum + w * x where the mask keeps it.
template <bool, class R>
FUSED_DROPOUT_INLINE Vec<R> add_kept(GroupMask<R> mask, int step, const R* w, Vec<R> x,
                                     Vec<R> sum) {
  return fma_kept(mask.bits, step, load(w), x, sum);
}

template <class R>
constexpr int kGradCopies = 1;  // of a gradient in its panel

template <bool kInput, bool kWeight, bool, class R>
FUSED_DROPOUT_INLINE void add_gradients(GroupMask<R> mask, int step, const R* grad, Vec<R> w,
                                        Vec<R> x, Vec<R>& d_input, Vec<R>& d_weight) {
  const Vec<R> g = broadcast(*grad);
  if constexpr (kInput) d_input = fma_kept(mask.bits, step, w, g, d_input);
  if constexpr (kWeight) d_weight = fma_kept(mask.bits, step, x, g, d_weight);
}

// Nothing to do: see group_masks_avx2.h.
template <class R>
FUSED_DROPOUT_INLINE GroupMask<R> load_mask(const uint8_t* p) {
  return {p};
}
template <class R>
FUSED_DROPOUT_INLINE void store_mask(uint8_t*, GroupMask<R>) {}
template <class R, class At>
FUSED_DROPOUT_INLINE void arrange(const R* columns, At at) {
  constexpr int kLanes = Vec<R>::kLanes;
  for (int k = 0; k < kGroupColumns / kLanes; ++k) store(at(k), load(columns + k * kLanes));
}
template <class R, class At>
FUSED_DROPOUT_INLINE void restore(At at, R* columns) {
  constexpr int kLanes = Vec<R>::kLanes;
  for (int k = 0; k < kGroupColumns / kLanes; ++k) store(columns + k * kLanes, load(at(k)));
}

}  // namespace
}  // namespace fused_dropout
