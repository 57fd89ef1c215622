// Entries of the DropBlock kernels: the packed mask, and dropout with it for each dtype. Arrays are
// in device memory, where only kernels can read them.
#include "../../csrc/cuda/drop_block.cuh"
#include "../../csrc/cuda/dropout.cuh"
#include "device_memory.h"
#include "entries.h"

namespace fused_dropout {
namespace {

constexpr uint8_t kPoison = 0xA5;

// `geometry` is a BlockMaps; `words` is the size of `bits`, `scales` that of `scale`.
int block_mask(const int64_t* rng_state, const BlockMaps* geometry, double gamma, double eps,
               int64_t scales, int64_t words, uint32_t* bits, double* scale, int64_t max_blocks) {
  const BlockMaps maps = on_host(geometry);
  const int64_t groups = group_count(maps.count * seeds_of_map(maps));
  const Workspace<uint32_t> seeds(groups * kGroupWords, kPoison);
  const Workspace<uint32_t> scratch(drop_block::mask_scratch(maps), kPoison);
  const Workspace<unsigned long long> kept(scales + 1, 0);
  drop_block::RunCounts counts = drop_block::no_counts();
  if (scales > 0) {
    counts = {scales, make_divisor(maps.count * elements_of_map(maps) / scales), eps, kept.data(),
              scale};
  }
  const MaskRule rule = make_mask_rule(0, 0, kStreamMask, gamma, kSeedDigits);
  const cudaError_t error =
      launch_draw_groups(rule, rng_from_state(rng_state), 0, 1, groups, seeds.data(), nullptr);
  if (error != cudaSuccess) return error;
  return drop_block::launch_mask(maps, seeds.data(), counts, scratch.data(), words, bits, nullptr,
                                 max_blocks);
}

CUDA_ON_CPU_ENTRY(block_mask);

// Elements in memory as `layout`, an array of MaskedDims, says. Without scales they are
// kept as they are.
template <class T>
int drop_block(const MaskedDim* layout, int64_t dims, int64_t count, const uint32_t* bits,
               const double* scale, int64_t scales, const T* in, T* out) {
  const MaskedDims masked = make_masked_dims(on_host(layout, dims).data(), static_cast<int>(dims));
  const dropout::Operands<T> tensors = {in, nullptr, out, count};
  if (scales == 0) {
    const dropout::OneMap<Real<T>> map = dropout::one_map<T>({1, 0, 0});
    return dropout::launch_masked<T>(bits, masked, map, tensors, nullptr);
  }
  const dropout::ScaleOfRun<Real<T>> maps = {scale, make_divisor(count / scales)};
  return dropout::launch_masked<T>(bits, masked, maps, tensors, nullptr);
}

const worker::Registration float32_entry("drop_block_float32", drop_block<float>);
const worker::Registration bfloat16_entry("drop_block_bfloat16", drop_block<__nv_bfloat16>);
const worker::Registration float16_entry("drop_block_float16", drop_block<__half>);
const worker::Registration float64_entry("drop_block_float64", drop_block<double>);

}  // namespace
}  // namespace fused_dropout
