// What DropBlock's operators take, checked, and what follows from it.
#pragma once

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>

#include <array>

#include "checks.h"
#include "common/drop_block.h"
#include "dropout_layout.h"

namespace fused_dropout {

// One mask for all channels is a mask of an input that has one.
inline BlockMaps check_drop_block_mask(const at::Tensor& input, at::IntArrayRef block, double gamma,
                                       bool share_channels, int64_t scales, double eps) {
  const int64_t dims = input.dim() - 2;
  TORCH_CHECK(dims >= 1 && dims <= 3, "input must be [N, C] and 1 to 3 spatial sizes, got ",
              input.sizes());
  TORCH_CHECK(static_cast<int64_t>(block.size()) == dims, "block must have ", dims, " sides, got ",
              block);
  TORCH_CHECK_VALUE(gamma >= 0.0 && gamma <= 1.0, "gamma must be a probability in [0, 1], got ",
                    gamma);
  TORCH_CHECK_VALUE(eps >= 0.0, "eps must be at least 0, got ", eps);
  TORCH_CHECK_VALUE(scales == 0 || scales == 1 || scales == input.size(0),
                    "scales must be 0, 1 or the input's size(0), got ", scales);
  BlockMaps maps{input.size(0) * (share_channels ? 1 : input.size(1)), {1, 1, 1}, {1, 1, 1}};
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t size = input.size(2 + d);
    const int64_t side = block[static_cast<size_t>(d)];
    TORCH_CHECK_VALUE(side >= 1 && (side <= size || size == 0), "a side of the block must be in ",
                      "[1, ", size, "], got ", side);
    maps.size[3 - dims + d] = size;
    maps.block[3 - dims + d] = side;
  }
  return maps;
}

// Whole groups and one to spare, which the kernels may read.
inline int64_t block_mask_words(int64_t bits) { return (group_count(bits) + 1) * kGroupWords; }

inline void check_drop_block(const at::Tensor& input, const at::Tensor& bits,
                             const at::Tensor& scale, bool share_channels) {
  kernel_type(input);
  TORCH_CHECK(input.dim() >= 2, "input must be [N, C, ...], got ", input.sizes());
  const int64_t channels = share_channels ? input.size(1) : 1;
  const int64_t elements = channels == 0 ? 0 : input.numel() / channels;
  TORCH_CHECK(bits.scalar_type() == at::kInt && bits.dim() == 1 && bits.is_contiguous() &&
                  (input.numel() == 0 || bits.size(0) == block_mask_words(elements)),
              "bits must be what drop_block_mask gives for this input, got ", bits.scalar_type(),
              " ", bits.sizes());
  TORCH_CHECK(scale.scalar_type() == at::kDouble && scale.dim() == 1 && scale.is_contiguous() &&
                  (scale.size(0) <= 1 || scale.size(0) == input.size(0)),
              "scale must be what drop_block_mask gives for this input, got ", scale.scalar_type(),
              " ", scale.sizes());
  TORCH_CHECK(bits.device() == input.device() && scale.device() == input.device(),
              "bits and scale must be on ", input.device(), ", got ", bits.device(), " and ",
              scale.device());
}

// Whether the first dimension is the outermost in memory of an input that has no gaps.
inline bool samples_are_apart(const at::Tensor& input) {
  return input.size(0) == 1 || input.stride(0) * input.size(0) == input.numel();
}

inline DropoutLayout drop_block_layout(const at::Tensor& input, bool share_channels) {
  const int64_t channel_dim = 1;
  return dropout_layout(input, at::IntArrayRef(&channel_dim, share_channels ? 1 : 0));
}

}  // namespace fused_dropout
