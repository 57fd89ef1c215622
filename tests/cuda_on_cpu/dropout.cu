// Entries of the dropout kernels, one for each dtype, and of what they are built from: division by
// a known number, and 16 lanes drawing a group.
#include "../../csrc/cuda/dropout.cuh"
#include "device_memory.h"
#include "entries.h"

namespace fused_dropout {
namespace {

enum Flags { kWithResidual = 1, kInPlace = 2 };

template <class T>
dropout::Operands<T> operands_of(const T* in, const T* residual, T* out, int64_t count, int flags) {
  return {flags & kInPlace ? out : in, flags & kWithResidual ? residual : nullptr, out, count};
}

// As the operator launches it.
template <class T>
int linear(const int64_t* rng_state, double p, double scale, double shift, double fill, const T* in,
           const T* residual, T* out, int64_t count, int flags) {
  const MaskRule rule = make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits);
  return dropout::launch_linear<T>(rule, rng_from_state(rng_state), {scale, shift, fill},
                                   operands_of(in, residual, out, count, flags), nullptr);
}

// With `warp_groups` and the way of drawing as a large tensor, or a small one, has them.
template <class T>
int linear_as(uint64_t seed, uint64_t offset, double p, const T* in, T* out, int64_t count,
              int flags, int warp_groups, int by_digits, int vectors, int blocks) {
  const MaskRule rule = make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits);
  const RngSource rng = {nullptr, seed, offset};
  const auto launch =
      by_digits ? dropout::launch_linear_as<T, true> : dropout::launch_linear_as<T, false>;
  return launch(rule, rng, {2, 0, 0}, operands_of<T>(in, nullptr, out, count, flags), warp_groups,
                vectors != 0, dim3(static_cast<unsigned>(blocks)), nullptr);
}

// `dims` are outermost in memory first.
MaskedDims dims_of(const MaskedDim* dims, int count) {
  return make_masked_dims(on_host(dims, count).data(), count);
}

// As the operator launches it.
template <class T>
int masked(const uint32_t* bits, const MaskedDim* dims, int dim_count, double scale, double shift,
           double fill, const T* in, const T* residual, T* out, int64_t count, int flags) {
  const dropout::OneMap<Real<T>> map = {dropout::reals_of<T>({scale, shift, fill})};
  return dropout::launch_masked<T>(bits, dims_of(dims, dim_count), map,
                                   operands_of(in, residual, out, count, flags), nullptr);
}

// More elements than threads: as `masked`, in `blocks` blocks.
template <class T>
int masked_in_blocks(const uint32_t* bits, const MaskedDim* dims, int dim_count, const T* in,
                     T* out, int64_t count, int flags, int transposed, int blocks) {
  const MaskedDims all = dims_of(dims, dim_count);
  using Maps = dropout::OneMap<Real<T>>;
  const Maps maps = {dropout::reals_of<T>({2, 0, 0})};
  const dropout::Operands<T> tensors = operands_of<T>(in, nullptr, out, count, flags);
  const dim3 grid(static_cast<unsigned>(blocks));
  if (transposed) {
    const int64_t rows = all.size[dim_count - 2].value;
    const int64_t tiles = ceil_div(rows, dropout::kTileRows);
    return launch_kernel<dropout::transposed_kernel<T, Maps>>(
        grid, dim3(kElementThreads), 0, nullptr, bits, all, make_divisor(tiles),
        count / rows * tiles, maps, tensors);
  }
  return launch_kernel<dropout::masked_kernel<T, kVector<T>, Maps>>(
      grid, dim3(kElementThreads), 0, nullptr, bits, all, maps, tensors);
}

template <class T>
struct Entries {
  explicit Entries(const std::string& dtype)
      : linear_entry("dropout_linear_" + dtype, linear<T>),
        linear_as_entry("dropout_linear_as_" + dtype, linear_as<T>),
        masked_entry("dropout_masked_" + dtype, masked<T>),
        masked_in_blocks_entry("dropout_masked_in_blocks_" + dtype, masked_in_blocks<T>) {}

  worker::Registration linear_entry, linear_as_entry, masked_entry, masked_in_blocks_entry;
};

const Entries<float> float32_entries("float32");
const Entries<__nv_bfloat16> bfloat16_entries("bfloat16");
const Entries<__half> float16_entries("float16");
const Entries<double> float64_entries("float64");

__global__ void quotients_kernel(Divisor divisor, const int64_t* numbers, int64_t count,
                                 int64_t* out) {
  for (int64_t k = thread_in_grid(); k < count; k += threads_in_grid()) {
    out[k] = quotient(numbers[k], divisor);
  }
}

int quotients(int64_t divisor, const int64_t* numbers, int64_t count, int64_t* out) {
  return launch_kernel<quotients_kernel>(dim3(1), dim3(32), 0, nullptr, make_divisor(divisor),
                                         numbers, count, out);
}

// Lanes 0..15 of a warp draw group `first`, lanes 16..31 the next; each of them stores what it got.
__global__ void draw_by_lanes_kernel(MaskRule rule, RngSource rng, uint64_t first, uint32_t* out) {
  rule = seeded(rule, rng);
  const int lane = static_cast<int>(threadIdx.x);
  const GroupBits bits = keep_group_by_lanes(
      rule, keys_of(rule), first + static_cast<uint64_t>(lane / kDigitLanes), lane % kDigitLanes);
  store_group(out + lane * kGroupWords, bits);
}

int draw_by_lanes(const int64_t* rng_state, double p, int digits, uint64_t first, uint32_t* out) {
  return launch_kernel<draw_by_lanes_kernel>(dim3(1), dim3(kWarpLanes), 0, nullptr,
                                             make_mask_rule(0, 0, kStreamMask, p, digits),
                                             rng_from_state(rng_state), first, out);
}

CUDA_ON_CPU_ENTRY(quotients);
CUDA_ON_CPU_ENTRY(draw_by_lanes);

}  // namespace
}  // namespace fused_dropout
