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

// As the operators of dropout_linear launch it, for rows that begin in group `first_group`.
template <class T>
int block(const int64_t* rng_state, double p, const T* in, T* out, int64_t count, int flags,
          int64_t first_group) {
  const MaskRule rule = make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits);
  return dropout::launch_linear<T>(rule, rng_from_state(rng_state), {2, 0, 0},
                                   operands_of<T>(in, nullptr, out, count, flags), nullptr,
                                   first_group);
}

// With `warp_groups` and the way of drawing as a large tensor, or a small one, has them.
template <class T>
int linear_as(uint64_t seed, uint64_t offset, double p, const T* in, T* out, int64_t count,
              int flags, int warp_groups, int by_digits, int vectors, int blocks,
              int64_t first_group) {
  const MaskRule rule = make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits);
  const RngSource rng = {nullptr, seed, offset};
  const auto launch =
      by_digits ? dropout::launch_linear_as<T, true> : dropout::launch_linear_as<T, false>;
  return launch(rule, rng, {2, 0, 0}, operands_of<T>(in, nullptr, out, count, flags), warp_groups,
                vectors != 0, dim3(static_cast<unsigned>(blocks)), nullptr, first_group);
}

// `dims` are outermost in memory first.
MaskedDims dims_of(const MaskedDim* dims, int count) {
  return make_masked_dims(on_host(dims, count).data(), count);
}

// As the operator launches it, for a mask that has been drawn.
template <class T>
int masked(const uint32_t* bits, const MaskedDim* dims, int dim_count, double scale, double shift,
           double fill, const T* in, const T* residual, T* out, int64_t count, int flags) {
  return dropout::launch_masked<T>(bits, dims_of(dims, dim_count),
                                   dropout::one_map<T>({scale, shift, fill}),
                                   operands_of(in, residual, out, count, flags), nullptr);
}

// As the operator launches it, drawing as well; -1 where it would not.
template <class T>
int shared(const int64_t* rng_state, double p, const MaskedDim* dims, int dim_count, double scale,
           double shift, double fill, const T* in, const T* residual, T* out, int64_t count,
           int flags) {
  const MaskedDims all = dims_of(dims, dim_count);
  if (!dropout::draws_by_tile(all, count)) return -1;
  return dropout::launch_shared<T>(make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits),
                                   rng_from_state(rng_state), all, {scale, shift, fill},
                                   operands_of(in, residual, out, count, flags), nullptr);
}

// The loops of large tensors, in `blocks` blocks: tiles of `warp_groups` groups, or of up to
// `columns` columns, and one round after the other.

template <class T>
int masked_as(const uint32_t* bits, const MaskedDim* dims, int dim_count, const T* in, T* out,
              int64_t count, int flags, int warp_groups, int vectors, int blocks) {
  return dropout::launch_masked_as<T>(bits, dims_of(dims, dim_count),
                                      dropout::one_map<T>({2, 0, 0}),
                                      operands_of<T>(in, nullptr, out, count, flags), warp_groups,
                                      vectors != 0, dim3(static_cast<unsigned>(blocks)), nullptr);
}

template <class T>
int shared_as(const int64_t* rng_state, double p, const MaskedDim* dims, int dim_count, const T* in,
              T* out, int64_t count, int flags, int warp_groups, int by_digits, int vectors,
              int blocks) {
  const auto launch =
      by_digits ? dropout::launch_shared_as<T, true> : dropout::launch_shared_as<T, false>;
  return launch(make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits), rng_from_state(rng_state),
                dims_of(dims, dim_count), {2, 0, 0}, operands_of<T>(in, nullptr, out, count, flags),
                warp_groups, vectors != 0, dim3(static_cast<unsigned>(blocks)), nullptr);
}

template <class T>
int transposed_as(const uint32_t* bits, const MaskedDim* dims, int dim_count, const T* in, T* out,
                  int64_t count, int flags, int columns, int vectors, int blocks) {
  const MaskedDims all = dims_of(dims, dim_count);
  return dropout::launch_transposed_as<T>(
      bits, all, dropout::transposed_tiles(all, count, columns), dropout::one_map<T>({2, 0, 0}),
      operands_of<T>(in, nullptr, out, count, flags), vectors != 0,
      dim3(static_cast<unsigned>(blocks)), nullptr);
}

template <class T>
int columns_as(const int64_t* rng_state, double p, const MaskedDim* dims, int dim_count,
               const T* in, T* out, int64_t count, int flags, int most_groups, int vectors,
               int blocks) {
  const MaskedDims all = dims_of(dims, dim_count);
  return dropout::launch_columns_as<T>(make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits),
                                       rng_from_state(rng_state), all,
                                       dropout::column_tiles(all, count, most_groups), {2, 0, 0},
                                       operands_of<T>(in, nullptr, out, count, flags), vectors != 0,
                                       dim3(static_cast<unsigned>(blocks)), nullptr);
}

// As the operator launches it; -1 where it would not.
template <class T>
int columns(const int64_t* rng_state, double p, const MaskedDim* dims, int dim_count, double scale,
            double shift, double fill, const T* in, const T* residual, T* out, int64_t count,
            int flags) {
  const MaskedDims all = dims_of(dims, dim_count);
  if (!dropout::draws_by_columns(all, count)) return -1;
  return dropout::launch_columns<T>(make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits),
                                    rng_from_state(rng_state), all, {scale, shift, fill},
                                    operands_of(in, residual, out, count, flags), nullptr);
}

template <class T>
struct Entries {
  explicit Entries(const std::string& dtype)
      : linear_entry("dropout_linear_" + dtype, linear<T>),
        block_entry("dropout_block_" + dtype, block<T>),
        linear_as_entry("dropout_linear_as_" + dtype, linear_as<T>),
        masked_entry("dropout_masked_" + dtype, masked<T>),
        masked_as_entry("dropout_masked_as_" + dtype, masked_as<T>),
        shared_entry("dropout_shared_" + dtype, shared<T>),
        shared_as_entry("dropout_shared_as_" + dtype, shared_as<T>),
        transposed_as_entry("dropout_transposed_as_" + dtype, transposed_as<T>),
        columns_entry("dropout_columns_" + dtype, columns<T>),
        columns_as_entry("dropout_columns_as_" + dtype, columns_as<T>) {}

  worker::Registration linear_entry, block_entry, linear_as_entry, masked_entry, masked_as_entry,
      shared_entry, shared_as_entry, transposed_as_entry, columns_entry, columns_as_entry;
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

// The quotients of all numbers below `count` <= 2^12 by `divisor` <= 2^7.
__global__ void small_quotients_kernel(SmallDivisor divisor, int64_t count, int64_t* out) {
  for (int64_t k = thread_in_grid(); k < count; k += threads_in_grid()) {
    out[k] = small_quotient(static_cast<int>(k), divisor);
  }
}

int small_quotients(int divisor, int64_t count, int64_t* out) {
  return launch_kernel<small_quotients_kernel>(dim3(1), dim3(32), 0, nullptr,
                                               make_small_divisor(divisor), count, out);
}

// Words of bits turned over, 32 at a time.
__global__ void transposed_kernel(const uint32_t* words, uint32_t* out) {
  const int64_t k = thread_in_grid();
  out[k] = transposed(words[k], static_cast<int>(threadIdx.x % kWarpLanes));
}

int transposed_words(const uint32_t* words, int64_t matrices, uint32_t* out) {
  return launch_kernel<transposed_kernel>(dim3(static_cast<unsigned>(matrices)), dim3(kWarpLanes),
                                          0, nullptr, words, out);
}

// What launch_shared reckons with.
int most_groups(const MaskedDim* dims, int dim_count, int64_t count, int64_t elements) {
  return static_cast<int>(
      dropout::most_groups(dropout::bit_blocks(dims_of(dims, dim_count), count), elements));
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
CUDA_ON_CPU_ENTRY(small_quotients);
CUDA_ON_CPU_ENTRY(transposed_words);
CUDA_ON_CPU_ENTRY(most_groups);
CUDA_ON_CPU_ENTRY(draw_by_lanes);

}  // namespace
}  // namespace fused_dropout
