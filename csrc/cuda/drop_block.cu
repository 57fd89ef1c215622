// IMPL(CUDA) of DropBlock: checks and launches on the current stream.
//
// Workspace, freed to the caching allocator on return: the packed seeds, the counts of what is
// kept, and with blocks of three sides the bits between the two passes.
#include <algorithm>
#include <tuple>

#include "../ops/drop_block.h"
#include "binding.h"
#include "drop_block.cuh"
#include "dropout.cuh"

namespace fused_dropout::drop_block {
namespace {

uint32_t* words_of(const Tensor& tensor) { return mutable_data_of<uint32_t>(tensor); }

std::tuple<Tensor, Tensor> draw_mask(const Tensor& input, const Tensor& rng_state, Sizes block,
                                     double gamma, bool share_channels, int64_t scales,
                                     double eps) {
  const auto guard = device_guard(input, "input");
  const BlockMaps maps = check_mask_arguments(input, block, gamma, share_channels, scales, eps);
  const RngSource rng = rng_source(rng_state, device_of(input));
  const int64_t count = maps.count * elements_of_map(maps);
  if (count == 0) {
    return {full({mask_words(0)}, 0, dtypes().int32, input),
            full({scales}, 1, dtypes().float64, input)};
  }
  const int64_t groups = group_count(maps.count * seeds_of_map(maps));
  const Tensor seeds =
      draw_bits(unseeded_rule(gamma, kStreamMask, kSeedDigits), rng, groups, input);
  Tensor bits = empty_words(mask_words(count), input);
  Tensor scale = empty({scales}, dtypes().float64, input);
  const Tensor scratch = empty_words(mask_scratch(maps), input);
  RunCounts counts = no_counts();
  std::optional<Tensor> kept;
  if (scales > 0) {
    kept = full({scales + 1}, 0, dtypes().int64, input);
    counts = {scales, make_divisor(count / scales), eps, mutable_data_of<unsigned long long>(*kept),
              mutable_data_of<double>(scale)};
  }
  check_launch(launch_mask(maps, words_of(seeds), counts, words_of(scratch), bits.size(0),
                           words_of(bits), current_stream()));
  return {bits, scale};
}

// `out` has the strides of `input`, which has no gaps and whose samples are apart in memory if
// there are several scales.
void apply_into(const Tensor& out, const Tensor& input, const Tensor& bits, const Tensor& scale,
                bool share_channels) {
  const MaskLayout layout = layout_of(input, input.size(0), share_channels);
  const MaskedDims dims = masked_dims(layout);
  const int64_t scales = scale.size(0);
  with_type(input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const dropout::Operands<T> tensors = {data_of<T>(input), nullptr, mutable_data_of<T>(out),
                                          input.numel()};
    const auto launch = [&](const auto& maps) {
      check_launch(dropout::launch_masked<T>(data_of<uint32_t>(bits), dims, maps, tensors,
                                             current_stream()));
    };
    if (scales == 0) {
      launch(dropout::one_map<T>({1, 0, 0}));
    } else {
      launch(dropout::ScaleOfRun<Real<T>>{data_of<double>(scale),
                                          make_divisor(input.numel() / scales)});
    }
  });
}

Tensor forward(const Tensor& input, const Tensor& bits, const Tensor& scale, bool share_channels) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, bits, scale, share_channels);
  if (input.numel() == 0) return new_like(input);
  const Tensor dense = without_gaps(input);
  if (scale.size(0) > 1 && !samples_are_apart(dense)) {
    return copy_like(forward(row_major(dense), bits, scale, share_channels), dense);
  }
  Tensor out = is_same(dense, input) ? new_like(input) : dense;  // a copy is ours to change
  apply_into(out, dense, bits, scale, share_channels);
  return out;
}

Tensor forward_(const Tensor& input, const Tensor& bits, const Tensor& scale, bool share_channels) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, bits, scale, share_channels);
  check_no_overlap(input);
  if (input.numel() == 0) return input;
  if (is_dense(input) && (scale.size(0) <= 1 || samples_are_apart(input))) {
    apply_into(input, input, bits, scale, share_channels);
    return input;
  }
  copy(forward(input, bits, scale, share_channels), input);
  return input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("drop_block_mask", TORCH_BOX(&draw_mask));
  m.impl("drop_block", TORCH_BOX(&forward));
  m.impl("drop_block_", TORCH_BOX(&forward_));
}

}  // namespace fused_dropout::drop_block
