// The dimensions of a tensor in memory, and where each of its elements is in the mask
// (../ops/mask_layout.h).
#pragma once

#include "../common/params.h"
#include "divisor.cuh"

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

// The place of an element in the mask, and how far the last dimension goes on from there.
struct ElementPlace {
  int64_t bit;
  int64_t left;
};

FUSED_DROPOUT_DEVICE ElementPlace place_of_element(const MaskedDims& dims, int64_t element) {
  ElementPlace place = {0, 0};
  for (int d = dims.count - 1; d >= 0; --d) {
    const int64_t rest = quotient(element, dims.size[d]);
    const int64_t index = element - rest * dims.size[d].value;
    if (d == dims.count - 1) place.left = dims.size[d].value - index;
    place.bit += index * dims.mask_stride[d];
    element = rest;
  }
  return place;
}

}  // namespace
}  // namespace fused_dropout
