// IMPL(CUDA) of DropBlock: checks and launches on the current stream.
//
// Workspace, freed to the caching allocator on return: the packed seeds, the counts of what is
// kept, and with blocks of three sides the bits between the two passes.

#include <algorithm>
#include <tuple>

#include "../drop_block_arguments.h"
#include "binding.h"
#include "drop_block.cuh"

namespace fused_dropout::drop_block {
namespace {

uint32_t* words_of(const Tensor& tensor) {
  return mutable_data_of<uint32_t>(tensor);
}

std::tuple<Tensor, Tensor> drop_block_mask_cuda(const Tensor& input, const Tensor& rng_state,
                                                Sizes block, double gamma,
                                                bool share_channels, int64_t scales, double eps) {
  const auto guard = device_guard(input, "input");
  const BlockMaps maps = check_drop_block_mask(input, block, gamma, share_channels, scales, eps);
  const RngSource rng = rng_source(rng_state, device_of(input));
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
              mutable_data_of<double>(scale)};
  }
  check_launch(launch_block_mask(maps, words_of(seeds), counts, words_of(scratch), bits.size(0),
                                 words_of(bits), current_stream()));
  return {bits, scale};
}

// `out` has the strides of `input`, which has no gaps and whose samples are apart in memory if
// there are several scales.
void drop_block_into(const Tensor& out, const Tensor& input, const Tensor& bits,
                     const Tensor& scale, bool share_channels) {
  const MaskLayout layout = drop_block_layout(input, share_channels);
  const MaskedDims dims =
      make_masked_dims(layout.dims.data(), static_cast<int>(layout.dims.size()));
  const int64_t scales = scale.size(0);
  with_type(input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const DropoutOperands<T> tensors = {data_of<T>(input), nullptr,
                                        mutable_data_of<T>(out), input.numel()};
    const auto launch = [&](const auto& maps) {
      check_launch(launch_masked_dropout<T>(data_of<uint32_t>(bits),
                                            dims, maps, tensors, current_stream()));
    };
    if (scales == 0) {
      launch(OneMap<Sum<T>>{{1, 0, 0}});
    } else {
      launch(
          ScaleOfRun<Sum<T>>{data_of<double>(scale), make_divisor(input.numel() / scales)});
    }
  });
}

Tensor drop_block_cuda(const Tensor& input, const Tensor& bits, const Tensor& scale,
                       bool share_channels) {
  const auto guard = device_guard(input, "input");
  check_drop_block(input, bits, scale, share_channels);
  if (input.numel() == 0) return new_like(input);
  const Tensor dense = without_gaps(input);
  if (scale.size(0) > 1 && !samples_are_apart(dense)) {
    return COPYLIKE[dense](drop_block_cuda(row_major(dense), bits, scale, share_channels));
  }
  Tensor out = is_same(dense, input) ? new_like(input) : dense;  // a copy is ours to change
  drop_block_into(out, dense, bits, scale, share_channels);
  return out;
}

Tensor drop_block_cuda_(const Tensor& input, const Tensor& bits, const Tensor& scale,
                        bool share_channels) {
  const auto guard = device_guard(input, "input");
  check_drop_block(input, bits, scale, share_channels);
  check_no_overlap(input);
  if (input.numel() == 0) return input;
  if (is_dense(input) && (scale.size(0) <= 1 || samples_are_apart(input))) {
    drop_block_into(input, input, bits, scale, share_channels);
    return input;
  }
  return input.copy_(drop_block_cuda(input, bits, scale, share_channels));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("drop_block_mask", TORCH_BOX(&drop_block_mask_cuda));
  m.impl("drop_block", TORCH_BOX(&drop_block_cuda));
  m.impl("drop_block_", TORCH_BOX(&drop_block_cuda_));
}

}  // namespace fused_dropout::drop_block
