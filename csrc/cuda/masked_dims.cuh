// The dimensions of a tensor in memory, and where each of its elements is in the mask
// (../ops/mask_layout.h).
#pragma once

#include "../common/params.h"
#include "divisor.cuh"
#include "packed_bits.cuh"

namespace fused_dropout {

constexpr int kMaxMaskedDims = 16;

// The dimensions of a tensor, outermost in memory first.
struct MaskedDims {
  int count;
  Divisor size[kMaxMaskedDims];
  int64_t mask_stride[kMaxMaskedDims];
};

// Of `count` <= kMaxMaskedDims dimensions.
inline MaskedDims make_masked_dims(const MaskedDim* dims, int count) {
  MaskedDims all{count, {}, {}};
  for (int d = 0; d < count; ++d) {
    all.size[d] = make_divisor(dims[d].size);
    all.mask_stride[d] = dims[d].mask_stride;
  }
  return all;
}

namespace {

// The place of an element in the mask, how far the last dimension goes on from there, and how far
// the one before it does.
struct ElementPlace {
  int64_t bit;
  int64_t left;
  int64_t rows;
};

FUSED_DROPOUT_DEVICE ElementPlace place_of_element(const MaskedDims& dims, int64_t element) {
  ElementPlace place = {0, 0, 1};
  for (int d = dims.count - 1; d >= 0; --d) {
    const int64_t rest = quotient(element, dims.size[d]);
    const int64_t index = element - rest * dims.size[d].value;
    if (d == dims.count - 1) place.left = dims.size[d].value - index;
    if (d == dims.count - 2) place.rows = dims.size[d].value - index;
    place.bit += index * dims.mask_stride[d];
    element = rest;
  }
  return place;
}

// `count` <= 32 bits of the last dimension, which are `stride` apart.
FUSED_DROPOUT_DEVICE uint32_t bits_of_row(const uint32_t* bits, int64_t first, int64_t stride,
                                          int count) {
  const uint32_t ones = ~0u >> (32 - count);
  if (stride == 0) return bit_at(bits, first) != 0 ? ones : 0;
  if (stride == 1) return bits_from(bits, first, count) & ones;
  uint32_t word = 0;
#pragma unroll 1
  for (int i = 0; i < count; ++i) word |= bit_at(bits, first + i * stride) << i;
  return word;
}

// The bits of `count` <= 32 neighbours in memory from `element` on. `bits` begins with bit `origin`
// of the mask. There is a division for each dimension where the last two begin anew, none for
// their rows.
FUSED_DROPOUT_DEVICE uint32_t bits_of_neighbours(const uint32_t* bits, int64_t origin,
                                                 const MaskedDims& dims, int64_t element,
                                                 int count) {
  const int last = dims.count - 1;
  const int64_t stride = dims.mask_stride[last];
  const int64_t row_stride = last > 0 ? dims.mask_stride[last - 1] : 0;
  const int row = static_cast<int>(dims.size[last].value < 32 ? dims.size[last].value : 32);
  uint32_t word = 0;
#pragma unroll 1
  for (int done = 0; done < count;) {
    const ElementPlace place = place_of_element(dims, element + done);
    int64_t bit = place.bit - origin;
    int n = static_cast<int>(place.left < count - done ? place.left : count - done);
    word |= bits_of_row(bits, bit, stride, n) << done;
    done += n;
    bit -= (dims.size[last].value - place.left) * stride;  // where this row begins
#pragma unroll 1
    for (int64_t rows = place.rows; rows > 1 && done < count; --rows) {
      bit += row_stride;
      n = row < count - done ? row : count - done;
      word |= bits_of_row(bits, bit, stride, n) << done;
      done += n;
    }
  }
  return word;
}

}  // namespace
}  // namespace fused_dropout
