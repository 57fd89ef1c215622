// IMPL(CPU) of DropBlock. The mask: draw the seeds' bits, dilate them chunk by chunk, count what is
// kept. Then dropout with these bits, forward and backward alike.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <tuple>
#include <vector>

#include "../drop_block_arguments.h"
#include "fresh_output.h"
#include "masked_elements.h"

namespace fused_dropout {
namespace {

using at::Tensor;

constexpr int64_t kWordBits = 64;
constexpr int64_t kChunkBits = 1 << 16;  // 8 KiB, twice: in level-1 cache

// Maps dilated at a time: whole words of the result, so that threads share none.
int64_t maps_of_chunk(int64_t map_bits) {
  const int64_t unit = kWordBits / std::gcd(kWordBits, map_bits);
  return unit * std::max<int64_t>(1, kChunkBits / (unit * map_bits));
}

// How many elements are kept in each run of so many bits.
class KeptCounts {
 public:
  KeptCounts(int64_t runs, int64_t run_bits) : counts_(runs), run_bits_(run_bits) {}

  // Adds those among bits first, first + 1, ... first + count - 1.
  void add(const uint64_t* bits, int64_t first, int64_t count) {
    if (counts_.empty()) return;
    const int64_t end = first + count;
    while (first < end) {
      const int64_t run = first / run_bits_;
      const int64_t stop = std::min(end, (run + 1) * run_bits_);
      counts_[static_cast<size_t>(run)] +=
          kernels().drop_block.count_bits(bits, first, stop - first);
      first = stop;
    }
  }

  // The factors that bring the kept elements up to the number of all.
  Tensor scales(double eps) const {
    Tensor scale = at::empty({static_cast<int64_t>(counts_.size())}, at::kDouble);
    double* out = scale.mutable_data_ptr<double>();
    for (const auto& count : counts_) {
      *out++ = static_cast<double>(run_bits_) / (static_cast<double>(count.load()) + eps);
    }
    return scale;
  }

 private:
  std::vector<std::atomic<int64_t>> counts_;
  int64_t run_bits_;
};

void dilate_all(const BlockMaps& maps, const uint32_t* seeds, uint64_t* out, KeptCounts* kept) {
  const int64_t map_bits = elements_of_map(maps);
  const int64_t chunk_maps = maps_of_chunk(map_bits);
  at::parallel_for(0, ceil_div(maps.count, chunk_maps), 1, [&](int64_t begin, int64_t end) {
    const DropBlockKernels& table = kernels().drop_block;
    BlockMaps chunk = maps;
    chunk.count = std::min(maps.count, chunk_maps);
    Tensor scratch = at::empty({table.scratch_words(chunk)}, at::kLong);
    uint64_t* const space = static_cast<uint64_t*>(scratch.mutable_data_ptr());
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k * chunk_maps;
      chunk.count = std::min(chunk_maps, maps.count - first);
      table.dilate(chunk, seeds, first * seeds_of_map(maps), space,
                   out + first * map_bits / kWordBits);
      kept->add(out, first * map_bits, chunk.count * map_bits);
    }
  });
}

std::tuple<Tensor, Tensor> drop_block_mask_cpu(const Tensor& input, const Tensor& rng_state,
                                               at::IntArrayRef block, double gamma,
                                               bool share_channels, int64_t scales, double eps) {
  const BlockMaps maps = check_drop_block_mask(input, block, gamma, share_channels, scales, eps);
  const MaskRule rule = rule_from_cpu_state(rng_state, gamma, kStreamMask, kSeedDigits);
  const int64_t count = maps.count * elements_of_map(maps);
  if (count == 0) {
    return {at::zeros({block_mask_words(0)}, at::kInt), at::ones({scales}, at::kDouble)};
  }
  const Tensor seeds = draw_all_bits(rule, maps.count * seeds_of_map(maps));
  Tensor bits = at::empty({block_mask_words(count)}, at::kInt);
  const int64_t words = ceil_div(count, kWordBits);
  bits.narrow(0, 2 * words, bits.size(0) - 2 * words).zero_();
  KeptCounts kept(scales, count / std::max<int64_t>(1, scales));
  dilate_all(maps, static_cast<const uint32_t*>(seeds.const_data_ptr()),
             static_cast<uint64_t*>(bits.mutable_data_ptr()), &kept);
  return {bits, kept.scales(eps)};
}

// `out` has the strides of `input`, which has no gaps and whose samples are apart in memory if
// there are several scales.
void drop_block_into(const Tensor& out, const Tensor& input, const Tensor& bits,
                     const Tensor& scale, bool share_channels) {
  const int64_t runs = std::max<int64_t>(1, scale.size(0));  // of elements with the same scale
  const int64_t run_numel = input.numel() / runs;
  const DropoutLayout first_run =
      drop_block_layout(runs == 1 ? input : input.narrow(0, 0, 1), share_channels);
  const MaskedWork all{kernels().dropout,
                       static_cast<int>(kernel_type(input)),
                       input.element_size(),
                       {1, 0, 0},
                       {input.const_data_ptr(), nullptr, out.mutable_data_ptr(), input.numel()}};
  const double* const factors = scale.const_data_ptr<double>();
  const uint32_t* const words = static_cast<const uint32_t*>(bits.const_data_ptr());
  const auto apply = [&](int64_t run) {
    MaskedWork work = all;
    if (scale.size(0) > 0) work.map.scale = factors[run];
    work.all = all.run(run * run_numel, run_numel);
    DropoutLayout layout = first_run;
    layout.first_bit = run * layout.mask_numel;
    run_masked(work, layout, words);
  };
  if (runs == 1) return apply(0);
  const int64_t grain = std::max<int64_t>(1, kGrainGroups * kGroupColumns / run_numel);
  at::parallel_for(0, runs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) apply(run);
  });
}

Tensor drop_block_cpu(const Tensor& input, const Tensor& bits, const Tensor& scale,
                      bool share_channels) {
  check_drop_block(input, bits, scale, share_channels);
  if (input.numel() == 0) return at::empty_like(input);
  const Tensor dense = without_gaps(input);
  if (scale.size(0) > 1 && !samples_are_apart(dense)) {
    return at::empty_like(dense).copy_(
        drop_block_cpu(dense.contiguous(), bits, scale, share_channels));
  }
  Tensor out = dense.is_same(input) ? fresh_output(input) : dense;  // a copy is ours to change
  drop_block_into(out, dense, bits, scale, share_channels);
  return out;
}

Tensor drop_block_cpu_(const Tensor& input, const Tensor& bits, const Tensor& scale,
                       bool share_channels) {
  check_drop_block(input, bits, scale, share_channels);
  at::assert_no_internal_overlap(input);
  if (input.numel() == 0) return input;
  if (input.is_non_overlapping_and_dense() && (scale.size(0) <= 1 || samples_are_apart(input))) {
    drop_block_into(input, input, bits, scale, share_channels);
    return input;
  }
  return input.copy_(drop_block_cpu(input, bits, scale, share_channels));
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("drop_block_mask", drop_block_mask_cpu);
  m.impl("drop_block", drop_block_cpu);
  m.impl("drop_block_", drop_block_cpu_);
}

}  // namespace fused_dropout
