// IMPL(CUDA) of DropBlock: checks and launches on the current stream.
//
// Workspace, freed to the caching allocator on return: the packed seeds, the counts of what is
// kept, and with blocks of three sides the bits between the two passes.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../drop_block_arguments.h"
#include "binding.h"
#include "drop_block.cuh"

namespace fused_dropout {
namespace {

using at::Tensor;

uint32_t* words_of(const Tensor& tensor) {
  return static_cast<uint32_t*>(tensor.mutable_data_ptr());
}

std::tuple<Tensor, Tensor> drop_block_mask_cuda(const Tensor& input, const Tensor& rng_state,
                                                at::IntArrayRef block, double gamma,
                                                bool share_channels, int64_t scales, double eps) {
  const auto guard = device_guard(input, "input");
  const BlockMaps maps = check_drop_block_mask(input, block, gamma, share_channels, scales, eps);
  const RngSource rng = rng_source(rng_state, input.device());
  const auto ints = input.options().dtype(at::kInt);
  const auto doubles = input.options().dtype(at::kDouble);
  const int64_t count = maps.count * elements_of_map(maps);
  if (count == 0) return {at::zeros({block_mask_words(0)}, ints), at::ones({scales}, doubles)};
  const int64_t groups = group_count(maps.count * seeds_of_map(maps));
  const Tensor seeds = at::empty({groups * kGroupWords}, ints);
  check_launch(launch_draw_groups(unseeded_rule(gamma, kStreamMask, kSeedDigits), rng, 0, 1, groups,
                                  words_of(seeds), current_stream()));
  Tensor bits = at::empty({block_mask_words(count)}, ints);
  Tensor scale = at::empty({scales}, doubles);
  const Tensor scratch = at::empty({block_mask_scratch(maps)}, ints);
  RunCounts counts = no_counts();
  Tensor kept;
  if (scales > 0) {
    kept = at::zeros({scales + 1}, input.options().dtype(at::kLong));
    counts = {scales, make_divisor(count / scales), eps,
              static_cast<unsigned long long*>(kept.mutable_data_ptr()),
              scale.mutable_data_ptr<double>()};
  }
  check_launch(launch_block_mask(maps, words_of(seeds), counts, words_of(scratch), bits.size(0),
                                 words_of(bits), current_stream()));
  return {bits, scale};
}

// `out` has the strides of `input`, which has no gaps and whose samples are apart in memory if
// there are several scales.
void drop_block_into(const Tensor& out, const Tensor& input, const Tensor& bits,
                     const Tensor& scale, bool share_channels) {
  const DropoutLayout layout = drop_block_layout(input, share_channels);
  const MaskedDims dims =
      make_masked_dims(layout.dims.data(), static_cast<int>(layout.dims.size()));
  const int64_t scales = scale.size(0);
  with_type(input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const DropoutOperands<T> tensors = {static_cast<const T*>(input.const_data_ptr()), nullptr,
                                        static_cast<T*>(out.mutable_data_ptr()), input.numel()};
    const auto launch = [&](const auto& maps) {
      check_launch(launch_masked_dropout<T>(static_cast<const uint32_t*>(bits.const_data_ptr()),
                                            dims, maps, tensors, current_stream()));
    };
    if (scales == 0) {
      launch(OneMap<Sum<T>>{{1, 0, 0}});
    } else {
      launch(
          ScaleOfRun<Sum<T>>{scale.const_data_ptr<double>(), make_divisor(input.numel() / scales)});
    }
  });
}

Tensor drop_block_cuda(const Tensor& input, const Tensor& bits, const Tensor& scale,
                       bool share_channels) {
  const auto guard = device_guard(input, "input");
  check_drop_block(input, bits, scale, share_channels);
  if (input.numel() == 0) return at::empty_like(input);
  const Tensor dense = without_gaps(input);
  if (scale.size(0) > 1 && !samples_are_apart(dense)) {
    return at::empty_like(dense).copy_(
        drop_block_cuda(dense.contiguous(), bits, scale, share_channels));
  }
  Tensor out = dense.is_same(input) ? at::empty_like(input) : dense;  // a copy is ours to change
  drop_block_into(out, dense, bits, scale, share_channels);
  return out;
}

Tensor drop_block_cuda_(const Tensor& input, const Tensor& bits, const Tensor& scale,
                        bool share_channels) {
  const auto guard = device_guard(input, "input");
  check_drop_block(input, bits, scale, share_channels);
  at::assert_no_internal_overlap(input);
  if (input.numel() == 0) return input;
  if (input.is_non_overlapping_and_dense() && (scale.size(0) <= 1 || samples_are_apart(input))) {
    drop_block_into(input, input, bits, scale, share_channels);
    return input;
  }
  return input.copy_(drop_block_cuda(input, bits, scale, share_channels));
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("drop_block_mask", drop_block_mask_cuda);
  m.impl("drop_block", drop_block_cuda);
  m.impl("drop_block_", drop_block_cuda_);
}

}  // namespace fused_dropout
