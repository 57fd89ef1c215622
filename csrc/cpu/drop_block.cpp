// IMPL(CPU) of DropBlock. The mask: draw the seeds' bits, dilate them chunk by chunk, count what is
// kept. Then dropout with these bits, forward and backward alike.
#include "drop_block.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <tuple>
#include <vector>

#include "../ops/drop_block.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "masked_elements.h"

namespace fused_dropout::drop_block {
namespace {

constexpr int64_t kWordBits = 64;
constexpr int64_t kChunkBits = 1 << 16;  // 8 KiB, twice: in level-1 cache
constexpr int64_t kLongRun = 8 * kGrainElements;

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
      counts_[static_cast<size_t>(run)] += kernels<Kernels>().count_bits(bits, first, stop - first);
      first = stop;
    }
  }

  // The factors that bring the kept elements up to the number of all.
  Tensor scales(double eps, const Tensor& like) const {
    Tensor scale = empty({static_cast<int64_t>(counts_.size())}, dtypes().float64, like);
    double* out = mutable_data_of<double>(scale);
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
  parallel_for(0, ceil_div(maps.count, chunk_maps), 1, [&](int64_t begin, int64_t end) {
    const Kernels& table = kernels<Kernels>();
    BlockMaps chunk = maps;
    chunk.count = std::min(maps.count, chunk_maps);
    const Scratch<uint64_t> scratch(static_cast<size_t>(table.scratch_words(chunk)));
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k * chunk_maps;
      chunk.count = std::min(chunk_maps, maps.count - first);
      table.dilate(chunk, seeds, first * seeds_of_map(maps), scratch.get(),
                   out + first * map_bits / kWordBits);
      kept->add(out, first * map_bits, chunk.count * map_bits);
    }
  });
}

std::tuple<Tensor, Tensor> draw_mask(const Tensor& input, const Tensor& rng_state, Sizes block,
                                     double gamma, bool share_channels, int64_t scales,
                                     double eps) {
  const BlockMaps maps = check_mask_arguments(input, block, gamma, share_channels, scales, eps);
  const MaskRule rule = rule_from_cpu_state(rng_state, gamma, kStreamMask, kSeedDigits);
  const int64_t count = maps.count * elements_of_map(maps);
  if (count == 0) {
    return {full({mask_words(0)}, 0, dtypes().int32, input),
            full({scales}, 1, dtypes().float64, input)};
  }
  const Scratch<uint32_t> seeds = draw_all_bits(rule, maps.count * seeds_of_map(maps));
  Tensor bits = empty({mask_words(count)}, dtypes().int32, input);
  const int64_t words = ceil_div(count, kWordBits);
  uint32_t* const out = mutable_data_of<uint32_t>(bits);
  std::fill(out + 2 * words, out + bits.size(0), 0u);
  KeptCounts kept(scales, count / std::max<int64_t>(1, scales));
  dilate_all(maps, seeds.get(), mutable_data_of<uint64_t>(bits), &kept);
  return {bits, kept.scales(eps, input)};
}

// `out` has the strides of `input`, which has no gaps and whose samples are apart in memory if
// there are several scales.
void apply_into(const Tensor& out, const Tensor& input, const Tensor& bits, const Tensor& scale,
                bool share_channels) {
  const int64_t runs = std::max<int64_t>(1, scale.size(0));  // of elements with the same scale
  const int64_t run_numel = input.numel() / runs;
  const MaskLayout first_run = layout_of(input, runs == 1 ? input.size(0) : 1, share_channels);
  const MaskedWork all{kernels<dropout::Kernels>(),
                       kernel_index(input),
                       static_cast<int64_t>(input.element_size()),
                       {1, 0, 0},
                       {input.const_data_ptr(), nullptr, out.mutable_data_ptr(), input.numel()}};
  const double* const factors = data_of<double>(scale);
  const uint32_t* const words = data_of<uint32_t>(bits);
  const auto apply = [&](int64_t run) {
    MaskedWork work = all;
    if (scale.size(0) > 0) work.map.scale = factors[run];
    work.all = all.run(run * run_numel, run_numel);
    MaskLayout layout = first_run;
    layout.first_bit = run * layout.mask_numel;
    run_masked(work, layout, words);
  };
  if (run_numel >= kLongRun) {  // enough for all threads; the runs may be too few
    for (int64_t run = 0; run < runs; ++run) apply(run);
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kGrainElements / run_numel);
  parallel_for(0, runs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) apply(run);
  });
}

Tensor forward(const Tensor& input, const Tensor& bits, const Tensor& scale, bool share_channels) {
  check_arguments(input, bits, scale, share_channels);
  if (input.numel() == 0) return new_like(input);
  const Tensor dense = without_gaps(input);
  if (scale.size(0) > 1 && !samples_are_apart(dense)) {
    return copy_like(forward(row_major(dense), bits, scale, share_channels), dense);
  }
  Tensor out = is_same(dense, input) ? fresh_output(input) : dense;  // a copy is ours to change
  apply_into(out, dense, bits, scale, share_channels);
  return out;
}

Tensor forward_(const Tensor& input, const Tensor& bits, const Tensor& scale, bool share_channels) {
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

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("drop_block_mask", TORCH_BOX(&draw_mask));
  m.impl("drop_block", TORCH_BOX(&forward));
  m.impl("drop_block_", TORCH_BOX(&forward_));
}

}  // namespace fused_dropout::drop_block
