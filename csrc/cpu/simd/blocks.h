// Blocks of a group's 128 elements in and out.
#pragma once

#include "conversions.h"

namespace fused_dropout {
namespace {

// The elements first, first + 1, ... of a block, of which `count` exist; the others are 0. A whole
// block, which is the usual case, gets loops of constant length.
template <class T>
FUSED_DROPOUT_INLINE void read_block(const void* from, int64_t first, int64_t count, Real<T>* to) {
  const T* in = static_cast<const T*>(from) + first;
  if (count == kGroupColumns) {
    widen_row(in, 1, kGroupColumns, to);
  } else {
    for (int k = 0; k < kGroupColumns; ++k) to[k] = 0;
    widen_row(in, 1, count, to);
  }
}

template <class T>
FUSED_DROPOUT_INLINE void write_block(const Real<T>* from, int64_t first, int64_t count, void* to) {
  T* out = static_cast<T*>(to) + first;
  if (count == kGroupColumns) {
    narrow_row(from, kGroupColumns, out);
  } else {
    narrow_row(from, count, out);
  }
}

}  // namespace
}  // namespace fused_dropout
