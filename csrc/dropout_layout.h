// Which bit of its mask each element of a dropout's input has, in the order of memory.
//
// The mask has the input's shape with the shared dimensions set to 1, and its elements count up in
// logical (row-major) order, whatever the strides: element (n, c, h, w) of a channel mask has bit
// n * C + c. Dimensions that follow each other in memory and in the mask become one.
#pragma once

#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <vector>

#include "checks.h"

namespace fused_dropout {

struct DropoutLayout {
  std::vector<MaskedDim> dims;  // outermost in memory first; never empty
  int64_t numel;
  int64_t mask_numel;
  int64_t first_bit = 0;  // of the mask that the first element has
  // Bit k belongs to the k-th element in memory.
  bool is_linear() const { return dims.size() == 1 && (dims[0].mask_stride == 1 || numel == 1); }
};

// The mask's stride in each dimension of `input`, 0 in those of `shared_dims`.
inline std::vector<int64_t> mask_strides(const at::Tensor& input, at::IntArrayRef shared_dims,
                                         int64_t* mask_numel) {
  std::vector<bool> shared(static_cast<size_t>(input.dim()), false);
  for (const int64_t dim : shared_dims) {
    TORCH_CHECK_INDEX(dim >= 0 && dim < input.dim(), "shared_dims must be in [0, ", input.dim(),
                      "), got ", dim);
    shared[static_cast<size_t>(dim)] = true;
  }
  std::vector<int64_t> strides(shared.size(), 0);
  *mask_numel = 1;
  for (int64_t dim = input.dim() - 1; dim >= 0; --dim) {
    if (shared[static_cast<size_t>(dim)]) continue;
    if (input.size(dim) != 1) strides[static_cast<size_t>(dim)] = *mask_numel;
    *mask_numel *= input.size(dim);
  }
  return strides;
}

// `input` has no gaps or overlaps; its elements are visited in the order of memory.
inline DropoutLayout dropout_layout(const at::Tensor& input, at::IntArrayRef shared_dims) {
  DropoutLayout layout{{}, input.numel(), 0, 0};
  const std::vector<int64_t> strides = mask_strides(input, shared_dims, &layout.mask_numel);
  c10::SmallVector<int64_t, 8> order;
  for (int64_t dim = 0; dim < input.dim(); ++dim) {
    if (input.size(dim) != 1) order.push_back(dim);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return input.stride(a) > input.stride(b); });
  for (const int64_t dim : order) {
    const MaskedDim next = {input.size(dim), strides[static_cast<size_t>(dim)]};
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

// `input`, or a copy of it that has no gaps or overlaps, with the strides of torch's own results.
inline at::Tensor without_gaps(const at::Tensor& input) {
  return input.is_non_overlapping_and_dense() ? input : at::empty_like(input).copy_(input);
}

// `tensor`, or a copy of it that lies in memory as `like`, of the same sizes, does.
inline at::Tensor like_in_memory(const at::Tensor& tensor, const at::Tensor& like) {
  return tensor.strides() == like.strides() ? tensor : at::empty_like(like).copy_(tensor);
}

inline void check_dropout_arguments(const at::Tensor& input,
                                    const std::optional<at::Tensor>& residual, double p) {
  kernel_type(input);
  TORCH_CHECK_VALUE(p >= 0.0 && p <= 1.0, "p must be a probability in [0, 1], got ", p);
  if (residual.has_value()) check_operand(*residual, "residual", input.sizes(), input);
}

}  // namespace fused_dropout
