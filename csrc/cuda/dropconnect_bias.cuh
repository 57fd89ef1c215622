// What belongs to a DropConnect layer's bias: its mask, its gradient, and the kernel that adds it
// where sums were cut into slices.
//
//   d_bias[o] = scale * sum_n m[n, o] grad[n, o]
//
// Floor of the gradient: the bytes of grad. The rows are cut into slices, so that all of the device
// has something to do, and a second launch adds their sums, in order.
#pragma once

#include "dropconnect_operands.cuh"

namespace fused_dropout::dropconnect {
namespace {

// The bias of a layer; `data` is null without one.
struct Bias {
  const void* data;
  int64_t stride;
};

// The rule of the bias's mask, from that of the weight's.
FUSED_DROPOUT_DEVICE MaskRule bias_rule(MaskRule rule) {
  rule.slot = 1u << 31 | kStreamBias << 24;
  return rule;
}

// The bits of 128 biases under a mask, for a warp whose lanes all ask for the same.
FUSED_DROPOUT_DEVICE GroupBits bias_group_of_warp(const MaskRule& rule,
                                                  const PhiloxKeys<uint32_t>& keys,
                                                  int64_t number) {
  const uint64_t group = static_cast<uint64_t>(number);
  if (rule.digits < 2) return keep_group(rule, keys, group);
  return keep_group_by_lanes(rule, keys, group, threadIdx.x % kDigitLanes);
}

// result = scale * (partial sums + kept bias), for results [rows, cols]. A warp takes a group of
// 128 columns of a row.
template <class T>
__global__ void __launch_bounds__(kElementThreads)
    finish_kernel(const Real<T>* partial, int64_t slices, int64_t rows, int64_t cols,
                  Divisor groups, Divisor rows_per_mask, MaskRule rule, RngSource rng, Bias bias,
                  double scale, T* result) {
  using R = Real<T>;
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t count = rows * cols;
  const int64_t warps = threads_in_grid() / kWarpLanes;
  if (bias.data != nullptr) rule = bias_rule(seeded(rule, rng));
  for (int64_t i = thread_in_grid() / kWarpLanes; i < rows * groups.value; i += warps) {
    const int64_t row = quotient(i, groups);
    const int64_t group = i - row * groups.value;
    const int64_t col = group * kGroupColumns + lane;
    const R* const from = partial + row * cols + col;
    R sums[kGroupWords] = {};
#pragma unroll 4
    for (int64_t slice = 0; slice < slices; ++slice) {
#pragma unroll
      for (int w = 0; w < kGroupWords; ++w) {
        if (col + w * kWarpLanes < cols) sums[w] += from[slice * count + w * kWarpLanes];
      }
    }
    if (bias.data != nullptr) {
      const GroupBits bits = bias_group_of_warp(
          rule, keys_of(rule), quotient(row, rows_per_mask) * groups.value + group);
#pragma unroll
      for (int w = 0; w < kGroupWords; ++w) {
        const int64_t out = col + w * kWarpLanes;
        if (out < cols && (bits.word[w] >> lane & 1)) {
          sums[w] += widen(static_cast<const T*>(bias.data)[out * bias.stride]);
        }
      }
    }
#pragma unroll
    for (int w = 0; w < kGroupWords; ++w) {
      if (col + w * kWarpLanes < cols) {
        narrow(sums[w] * static_cast<R>(scale), &result[row * cols + col + w * kWarpLanes]);
      }
    }
  }
}

// Rows that a block of bias_grad_kernel draws masks for at a time: one for each thread.
constexpr int kBiasThreads = 256;
constexpr int kBiasWarps = kBiasThreads / kWarpLanes;
constexpr int kBiasAtOnce = 4;  // rows whose values a warp loads before it adds them

// The sum over a slice of the rows, of 128 columns: d_bias, or sums[slice][o] unscaled if there are
// several slices.
template <class T>
__global__ void __launch_bounds__(kBiasThreads)
    bias_grad_kernel(MaskRule rule, RngSource rng, MatrixView grad, int64_t rows,
                     int64_t out_features, Divisor rows_per_mask, Slices slices, double scale,
                     Real<T>* sums, T* d_bias) {
  using R = Real<T>;
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kBiasThreads]);
  FUSED_DROPOUT_SHARED(R, partial, [kBiasWarps][kGroupColumns]);
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  const int64_t groups = group_count(out_features);
  const int64_t slice = blockIdx.x / groups, group = blockIdx.x % groups;
  const int64_t end = (slice + 1) * slices.length < rows ? (slice + 1) * slices.length : rows;
  const int64_t out = group * kGroupColumns + lane;
  rule = seeded(rule, rng);
  const PhiloxKeys<uint32_t> keys = held_keys(rule);
  const T* const data = static_cast<const T*>(grad.data) + out * grad.col_stride;
  R own[kGroupWords] = {};
  for (int64_t first = slice * slices.length; first < end; first += kBiasThreads) {
    const int count = static_cast<int>(end - first < kBiasThreads ? end - first : kBiasThreads);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count) {
      const int64_t mask = quotient(first + threadIdx.x, rows_per_mask);
      drawn[threadIdx.x] = keep_group(rule, keys, static_cast<uint64_t>(mask * groups + group));
    }
    __syncthreads();
    for (int r = warp; r < count; r += kBiasWarps * kBiasAtOnce) {
      R x[kBiasAtOnce][kGroupWords];
#pragma unroll
      for (int k = 0; k < kBiasAtOnce; ++k) {
        const int row = r + k * kBiasWarps;
#pragma unroll
        for (int w = 0; w < kGroupWords; ++w) {
          const bool is_there = row < count && out + w * kWarpLanes < out_features;
          x[k][w] =
              is_there
                  ? widen(data[(first + row) * grad.row_stride + w * kWarpLanes * grad.col_stride])
                  : R(0);
        }
      }
#pragma unroll
      for (int k = 0; k < kBiasAtOnce; ++k) {
        const int row = r + k * kBiasWarps < count ? r + k * kBiasWarps : r;
#pragma unroll
        for (int w = 0; w < kGroupWords; ++w) {
          if (drawn[row].word[w] >> lane & 1) own[w] += x[k][w];
        }
      }
    }
  }
#pragma unroll
  for (int w = 0; w < kGroupWords; ++w) partial[warp][lane + w * kWarpLanes] = own[w];
  __syncthreads();
  const int64_t column = group * kGroupColumns + threadIdx.x;
  if (threadIdx.x >= kGroupColumns || column >= out_features) return;
  R sum = partial[0][threadIdx.x];
#pragma unroll
  for (int w = 1; w < kBiasWarps; ++w) sum += partial[w][threadIdx.x];
  if (slice_count(slices) == 1) {
    narrow(sum * static_cast<R>(scale), &d_bias[column]);
  } else {
    sums[slice * out_features + column] = sum;
  }
}

// ---- launches -----------------------------------------------------------------------------------

// `partial` [slices, rows, cols] becomes `result`. Of `bias`, null where there is none, rows with
// rows_per_mask in common have the same mask.
template <class T>
cudaError_t launch_finish(const Real<T>* partial, int64_t slices, int64_t rows, int64_t cols,
                          int64_t rows_per_mask, const MaskRule& rule, const RngSource& rng,
                          const Bias& bias, double scale, T* result, cudaStream_t stream) {
  const Divisor groups = make_divisor(group_count(cols));
  return launch_kernel<finish_kernel<T>>(
      element_blocks(rows * groups.value * kWarpLanes), dim3(kElementThreads), 0, stream, partial,
      slices, rows, cols, groups, make_divisor(rows_per_mask), rule, rng, bias, scale, result);
}

// Rows that share a mask, no more than there are: what make_divisor can take.
inline int64_t common_rows(int64_t rows_per_mask, int64_t rows) {
  return std::min(rows_per_mask, std::max<int64_t>(rows, 1));
}

constexpr int64_t kBiasBlocks = 3 * 132;  // three for each of an H200's multiprocessors

// Rows of a slice, at least: with fewer, the sums of more slices cost more than they save.
constexpr int64_t kFewestBiasRows = 128;

inline Slices bias_slices(int64_t rows, int64_t out_features, int64_t blocks = kBiasBlocks) {
  const int64_t groups = std::max<int64_t>(group_count(out_features), 1);
  const int64_t wanted = std::max<int64_t>(blocks / groups, 1);
  return {rows, std::max<int64_t>(ceil_div(rows, wanted), kFewestBiasRows)};
}

// `sums` holds slice_count(slices) * out_features numbers if there are several slices. `rule` is
// that of the bias's mask.
template <class T>
cudaError_t launch_bias_grad(const MaskRule& rule, const RngSource& rng, const MatrixView& grad,
                             int64_t rows, int64_t out_features, int64_t rows_per_mask,
                             const Slices& slices, double scale, Real<T>* sums, T* d_bias,
                             cudaStream_t stream) {
  if (out_features == 0) return cudaSuccess;
  const int64_t count = slice_count(slices);
  const cudaError_t error = launch_kernel<bias_grad_kernel<T>>(
      dim3(static_cast<unsigned>(group_count(out_features) * count)), dim3(kBiasThreads), 0, stream,
      rule, rng, grad, rows, out_features, make_divisor(common_rows(rows_per_mask, rows)), slices,
      scale, sums, d_bias);
  if (error != cudaSuccess || count == 1) return error;
  return launch_finish<T>(sums, count, 1, out_features, 1, MaskRule{}, RngSource{}, Bias{}, scale,
                          d_bias, stream);
}

}  // namespace
}  // namespace fused_dropout::dropconnect
