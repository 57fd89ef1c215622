// Which bit of its mask each element of a tensor has, in the order of memory.
//
// The mask has the tensor's shape with the shared dimensions set to 1, and its elements count up in
// logical (row-major) order, whatever the strides: element (n, c, h, w) of a channel mask has bit
// n * C + c. Dimensions that follow each other in memory and in the mask become one.
#pragma once

#include <algorithm>
#include <vector>

#include "checks.h"

namespace fused_dropout {

struct MaskLayout {
  std::vector<MaskedDim> dims;  // outermost in memory first; never empty
  int64_t numel;
  int64_t mask_numel;
  int64_t first_bit = 0;  // of the mask that the first element has
  // Bit k belongs to the k-th element in memory.
  bool is_linear() const { return dims.size() == 1 && (dims[0].mask_stride == 1 || numel == 1); }
};

// The mask's stride in each dimension, 0 in those of `shared_dims`.
inline std::vector<int64_t> mask_strides(Sizes sizes, Sizes shared_dims, int64_t* mask_numel) {
  std::vector<bool> shared(sizes.size(), false);
  for (const int64_t dim : shared_dims) {
    FUSED_DROPOUT_CHECK(dim >= 0 && dim < static_cast<int64_t>(sizes.size()),
                        "shared_dims must be in [0, ", sizes.size(), "), got ", dim);
    shared[static_cast<size_t>(dim)] = true;
  }
  std::vector<int64_t> strides(sizes.size(), 0);
  *mask_numel = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    if (shared[dim]) continue;
    if (sizes[dim] != 1) strides[dim] = *mask_numel;
    *mask_numel *= sizes[dim];
  }
  return strides;
}

// Of a tensor of at least one element, without gaps or overlaps. Its elements are visited in the
// order of memory.
inline MaskLayout mask_layout(Sizes sizes, Sizes strides, Sizes shared_dims) {
  MaskLayout layout{{}, 1, 0, 0};
  for (const int64_t size : sizes) layout.numel *= size;
  const std::vector<int64_t> in_mask = mask_strides(sizes, shared_dims, &layout.mask_numel);
  std::vector<size_t> order;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] != 1) order.push_back(dim);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return strides[a] > strides[b]; });
  for (const size_t dim : order) {
    const MaskedDim next = {sizes[dim], in_mask[dim]};
    if (!layout.dims.empty()) {
      MaskedDim& last = layout.dims.back();
      if (last.mask_stride == next.mask_stride * next.size) {
        last = {last.size * next.size, next.mask_stride};
        continue;
      }
    }
    layout.dims.push_back(next);
  }
  if (layout.dims.empty()) layout.dims.push_back({layout.numel, 1});
  return layout;
}

// The same for `tensor`. One in row-major order that shares no bits needs no look at its strides.
inline MaskLayout mask_layout(const Tensor& tensor, Sizes shared_dims) {
  if (shared_dims.empty() && tensor.is_contiguous()) {
    const int64_t numel = tensor.numel();
    return {{{numel, 1}}, numel, numel, 0};
  }
  return mask_layout(tensor.sizes(), tensor.strides(), shared_dims);
}

// `input`, or a copy of it that has no gaps or overlaps, with the strides of torch's own results.
inline Tensor without_gaps(const Tensor& input) {
  return is_dense(input) ? input : copy_like(input, input);
}

// `tensor`, or a copy of it that lies in memory as `like`, of the same sizes, does.
inline Tensor like_in_memory(const Tensor& tensor, const Tensor& like) {
  return same_sizes(tensor.strides(), like.strides()) ? tensor : copy_like(tensor, like);
}

}  // namespace fused_dropout
