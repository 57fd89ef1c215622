// Mean and variance of DropConnect's pre-activations on a GPU, in one pass over the weight.
//
// Launch: a warp takes kRows rows and kOuts output features, its lanes neighbouring columns, four
// at a time; 8 warps a block. At the end the lanes' sums are added in a fixed order.
//
// Floor: with few rows the bytes of the weight, 4 MiB of fp32 at 1024 x 1024, which an H200 reads
// in 1 us: a launch takes longer. With many rows two FFMAs for each connection, twice the dense
// layer's. A tile of 8 rows x 4 output features takes 256 of them for four columns, beside 48
// multiplications and 12 loads of 16 bytes from level-1 cache, 48 cycles of its 128 bytes a cycle,
// where the FFMAs take 64 of the multiprocessor's four schedulers. Prediction: 0.7 of FFMA peak.
// No tensor cores: squares in 16 bits would lose the variance's small numbers.
#pragma once

#include "../common/moments.h"
#include "elements.cuh"

namespace fused_dropout::dropconnect_moments {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kColumns = 4;  // of a lane at a time

// Four neighbours of a row, zeros from column `cols` on.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void load_columns(const T* row, int64_t stride, int64_t col, int64_t cols,
                                       Real<T> (&to)[kColumns]) {
  if (kVectors && col + kColumns <= cols) {
    constexpr int kAccess = sizeof(T) == 8 ? 2 : kColumns;  // 16 bytes at most
#pragma unroll
    for (int k = 0; k < kColumns; k += kAccess) {
      load_neighbours<T, kAccess>(row + col + k, to + k);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    to[k] = col + k < cols ? widen(row[(col + k) * stride]) : Real<T>(0);
  }
}

// The sum over all lanes of each value: afterwards value 0 of lane l, and of all lanes that differ
// from it in bits above the first log2(kCount) alone, is the total of value l % kCount.
template <int kCount, class R>
FUSED_DROPOUT_DEVICE void add_lanes(R* value, int lane) {
  int count = kCount;
#pragma unroll
  for (int bit = 1; bit < kWarpLanes; bit *= 2) {
    if (count > 1) {  // a lane keeps the values whose number has its own bit here
      const bool is_odd = lane & bit;
      count /= 2;
#pragma unroll
      for (int k = 0; k < kCount / 2; ++k) {
        if (k >= count) continue;
        const R even = value[2 * k], odd = value[2 * k + 1];
        value[k] = (is_odd ? odd : even) + __shfl_xor_sync(~0u, is_odd ? even : odd, bit);
      }
    } else {
      value[0] += __shfl_xor_sync(~0u, value[0], bit);
    }
  }
}

template <class T, int kRows, int kOuts, bool kVectors>
__global__ void __launch_bounds__(kThreads)
    moments_kernel(MomentsProblem problem, Real<T>* mean, Real<T>* variance) {
  using R = Real<T>;
  constexpr int kSums = kRows * kOuts;
  static_assert(kSums <= kWarpLanes);
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t tiles = ceil_div(problem.out_features, kOuts);
  const int64_t all = tiles * ceil_div(problem.rows, kRows);
  const int64_t step = int64_t{gridDim.x} * kWarps;
  for (int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpLanes; i < all; i += step) {
    const int64_t first_out = i % tiles * kOuts, first_row = i / tiles * kRows;
    const T* weight[kOuts];
    const T* input[kRows];
    // Of the last tile, what does not exist is the last that does.
#pragma unroll
    for (int o = 0; o < kOuts; ++o) {
      const int64_t last = problem.out_features - 1;
      const int64_t out = first_out + o < last ? first_out + o : last;
      weight[o] = static_cast<const T*>(problem.weight.data) + out * problem.weight.row_stride;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first_row + r < problem.rows - 1 ? first_row + r : problem.rows - 1;
      input[r] = static_cast<const T*>(problem.input.data) + row * problem.input.row_stride;
    }
    R means[kSums] = {}, variances[kSums] = {};
    for (int64_t col = lane * kColumns; col < problem.in_features; col += kWarpLanes * kColumns) {
      R w[kOuts][kColumns], w2[kOuts][kColumns];
#pragma unroll
      for (int o = 0; o < kOuts; ++o) {
        load_columns<T, kVectors>(weight[o], problem.weight.col_stride, col, problem.in_features,
                                  w[o]);
#pragma unroll
        for (int k = 0; k < kColumns; ++k) w2[o][k] = w[o][k] * w[o][k];
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        R x[kColumns], x2[kColumns];
        load_columns<T, kVectors>(input[r], problem.input.col_stride, col, problem.in_features, x);
#pragma unroll
        for (int k = 0; k < kColumns; ++k) x2[k] = x[k] * x[k];
#pragma unroll
        for (int o = 0; o < kOuts; ++o) {
#pragma unroll
          for (int k = 0; k < kColumns; ++k) {
            means[r * kOuts + o] = fma(w[o][k], x[k], means[r * kOuts + o]);
            variances[r * kOuts + o] = fma(w2[o][k], x2[k], variances[r * kOuts + o]);
          }
        }
      }
    }
    add_lanes<kSums>(means, lane);
    add_lanes<kSums>(variances, lane);
    const int64_t row = first_row + lane / kOuts, out = first_out + lane % kOuts;
    if (lane < kSums && row < problem.rows && out < problem.out_features) {
      const T* const bias = static_cast<const T*>(problem.bias);
      const R b = bias == nullptr ? R(0) : widen(bias[out * problem.bias_stride]);
      const Moments<R> result = finished<R>(problem, {means[0], variances[0]}, b);
      mean[row * problem.out_features + out] = result.mean;
      variance[row * problem.out_features + out] = result.variance;
    }
  }
}

// ---- launches ---------------------------------------------------------------------------------

// Whether the kernel may read four neighbours of a row at once.
template <class T>
bool has_vectors(const MatrixView& matrix) {
  constexpr size_t kBytes = sizeof(T) == 8 ? 16 : sizeof(T) * kColumns;
  return matrix.col_stride == 1 && is_aligned(matrix.data, kBytes) &&
         static_cast<size_t>(matrix.row_stride) * sizeof(T) % kBytes == 0;
}

template <class T, int kRows, int kOuts>
cudaError_t launch_tiles(const MomentsProblem& problem, Real<T>* mean, Real<T>* variance,
                         cudaStream_t stream, int64_t max_blocks) {
  const int64_t tiles = ceil_div(problem.out_features, kOuts) * ceil_div(problem.rows, kRows);
  const int64_t blocks = std::min(ceil_div(tiles, kWarps), max_blocks);
  const dim3 grid(static_cast<unsigned>(blocks));
  if (has_vectors<T>(problem.input) && has_vectors<T>(problem.weight)) {
    return launch_kernel<moments_kernel<T, kRows, kOuts, true>>(grid, dim3(kThreads), 0, stream,
                                                                problem, mean, variance);
  }
  return launch_kernel<moments_kernel<T, kRows, kOuts, false>>(grid, dim3(kThreads), 0, stream,
                                                               problem, mean, variance);
}

// Few rows have a warp for every output feature, so that all of the device reads the weight.
constexpr int64_t kFewRows = 2;

template <class T>
cudaError_t launch(const MomentsProblem& problem, Real<T>* mean, Real<T>* variance,
                   cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  if (problem.rows == 0 || problem.out_features == 0) return cudaSuccess;
  if (problem.rows <= kFewRows) {
    return launch_tiles<T, kFewRows, 1>(problem, mean, variance, stream, max_blocks);
  }
  constexpr int kOuts = sizeof(T) == 8 ? 2 : 4;  // as many doubles would not fit in registers
  return launch_tiles<T, 8, kOuts>(problem, mean, variance, stream, max_blocks);
}

}  // namespace
}  // namespace fused_dropout::dropconnect_moments
