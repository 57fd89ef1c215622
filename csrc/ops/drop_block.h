// The operators of DropBlock of input [N, C, spatial sizes...]. drop_block_mask gives the packed
// keep bits of its elements (of one channel if they share the blocks), and the factors that make
// up for what was dropped: none, one, or one for each of the N, as `scales` says. drop_block
// applies them.
#pragma once

#include "../common/drop_block.h"
#include "checks.h"
#include "mask_layout.h"

namespace fused_dropout::drop_block {

constexpr const char* kSchemas[] = {
    "drop_block_mask(Tensor input, Tensor rng_state, SymInt[] block, float gamma,"
    " bool share_channels, SymInt scales, float eps) -> (Tensor, Tensor)",
    "drop_block(Tensor input, Tensor bits, Tensor scale, bool share_channels) -> Tensor",
    "drop_block_(Tensor(a!) input, Tensor bits, Tensor scale, bool share_channels) -> Tensor(a!)",
};

// One mask for all channels is a mask of an input that has one.
inline BlockMaps check_mask_arguments(const Tensor& input, Sizes block, double gamma,
                                      bool share_channels, int64_t scales, double eps) {
  const int64_t dims = input.dim() - 2;
  FUSED_DROPOUT_CHECK(dims >= 1 && dims <= 3, "input must be [N, C] and 1 to 3 spatial sizes, got ",
                      input.sizes());
  FUSED_DROPOUT_CHECK(static_cast<int64_t>(block.size()) == dims, "block must have ", dims,
                      " sides, got ", block);
  check_probability(gamma, "gamma");
  check_not_negative(eps, "eps");
  FUSED_DROPOUT_CHECK(scales == 0 || scales == 1 || scales == input.size(0),
                      "scales must be 0, 1 or the input's size(0), got ", scales);
  BlockMaps maps{input.size(0) * (share_channels ? 1 : input.size(1)), {1, 1, 1}, {1, 1, 1}};
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t size = input.size(2 + d);
    const int64_t side = block[static_cast<size_t>(d)];
    FUSED_DROPOUT_CHECK(side >= 1 && (side <= size || size == 0),
                        "a side of the block must be in [1, ", size, "], got ", side);
    maps.size[3 - dims + d] = size;
    maps.block[3 - dims + d] = side;
  }
  return maps;
}

// Whole groups and one to spare, which the kernels may read.
inline int64_t mask_words(int64_t bits) { return (group_count(bits) + 1) * kGroupWords; }

inline void check_arguments(const Tensor& input, const Tensor& bits, const Tensor& scale,
                            bool share_channels) {
  kernel_type(input);
  FUSED_DROPOUT_CHECK(input.dim() >= 2, "input must be [N, C, ...], got ", input.sizes());
  const int64_t channels = share_channels ? input.size(1) : 1;
  const int64_t elements = channels == 0 ? 0 : input.numel() / channels;
  FUSED_DROPOUT_CHECK(dtype_of(bits) == dtypes().int32 && bits.dim() == 1 && bits.is_contiguous() &&
                          (input.numel() == 0 || bits.size(0) == mask_words(elements)),
                      "bits must be what drop_block_mask gives for this input, got ",
                      DtypeName{dtype_of(bits)}, " ", bits.sizes());
  FUSED_DROPOUT_CHECK(dtype_of(scale) == dtypes().float64 && scale.dim() == 1 &&
                          scale.is_contiguous() &&
                          (scale.size(0) <= 1 || scale.size(0) == input.size(0)),
                      "scale must be what drop_block_mask gives for this input, got ",
                      DtypeName{dtype_of(scale)}, " ", scale.sizes());
  FUSED_DROPOUT_CHECK(device_of(bits) == device_of(input) && device_of(scale) == device_of(input),
                      "bits and scale must be on ", device_of(input), ", got ", device_of(bits),
                      " and ", device_of(scale));
}

// Whether the first dimension is the outermost in memory of an input that has no gaps.
inline bool samples_are_apart(const Tensor& input) {
  return input.size(0) == 1 || input.stride(0) * input.size(0) == input.numel();
}

// Of the first `samples` of them.
inline MaskLayout layout_of(const Tensor& input, int64_t samples, bool share_channels) {
  std::vector<int64_t> sizes(input.sizes().begin(), input.sizes().end());
  sizes[0] = samples;
  const int64_t channel_dim = 1;
  return mask_layout(sizes, input.strides(), Sizes(&channel_dim, share_channels ? 1 : 0));
}

}  // namespace fused_dropout::drop_block
