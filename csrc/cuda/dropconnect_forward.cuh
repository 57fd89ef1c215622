// The output of a DropConnect layer (see dropconnect.cuh): tiles of 32 rows x 64 output features.
#pragma once

#include "dropconnect_operands.cuh"

namespace fused_dropout::dropconnect {
namespace {

constexpr int kForwardRows = 32;  // rows of a block's tile
constexpr int kForwardOuts = 64;  // output features of a block's tile
constexpr int kRowThreads = kForwardRows / kThreadTile;
constexpr int kOutThreads = kForwardOuts / kThreadTile;
constexpr int kMaskStride = kForwardOuts + 8;  // the 8 x 4 threads of a warp read other banks
constexpr int kByte = 8;                       // columns whose bits one R2P turns into predicates

// Columns of a group whose values are in shared memory at a time: all of them, but half for double,
// which would not fit in kSharedBytes.
template <class R>
constexpr int kValueColumns = kGroupColumns / (sizeof(R) == 8 ? 2 : 1);
// 16-byte loads of neighbouring rows: other banks.
template <class R>
constexpr int kValueStride = kValueColumns<R> + 4;

template <class R>
struct ForwardShared {
  R input[kForwardRows][kValueStride<R>];
  R weight[kForwardOuts][kValueStride<R>];
  uint32_t mask[kGroupWords][kForwardRows][kMaskStride];
};

// Where a block's tile of the output starts.
struct ForwardPlace {
  int64_t row;
  int64_t out;
};

// The values of kValueColumns columns from `first_col` on.
template <class T>
FUSED_DROPOUT_DEVICE void fill_values(ForwardShared<Real<T>>& tile,
                                      const DropConnectProblem& problem, const MatrixView& input,
                                      const MatrixView& weight, ForwardPlace at,
                                      int64_t first_col) {
  // Each thread fills one column of every kStep-th row, neighbours read neighbours.
  constexpr int kColumns = kValueColumns<Real<T>>;
  constexpr int kStep = kBlockThreads / kColumns;
  static_assert(kStep * kColumns == kBlockThreads && kForwardRows % kStep == 0, "whole rows");
  const int col = kStep == 1 ? threadIdx.x : threadIdx.x % kColumns;
  const int first = kStep == 1 ? 0 : threadIdx.x / kColumns;
#pragma unroll 4
  for (int k = 0; k < kForwardRows; k += kStep) {
    const int r = first + k;
    tile.input[r][col] =
        element<T>(input, at.row + r, first_col + col, problem.rows, problem.in_features);
  }
#pragma unroll 4
  for (int k = 0; k < kForwardOuts; k += kStep) {
    const int o = first + k;
    tile.weight[o][col] =
        element<T>(weight, at.out + o, first_col + col, problem.out_features, problem.in_features);
  }
}

// The mask bits of all columns of `group`.
template <class R>
FUSED_DROPOUT_DEVICE void fill_masks(ForwardShared<R>& tile, const DropConnectProblem& problem,
                                     ForwardPlace at, int64_t group) {
  for (int k = threadIdx.x; k < kForwardRows * kForwardOuts; k += kBlockThreads) {
    const int r = k / kForwardOuts, o = k % kForwardOuts;
    GroupBits bits = group_of(0u);
    if (at.row + r < problem.rows && at.out + o < problem.out_features) {
      bits = mask_group(problem, at.row + r, at.out + o, group);
    }
#pragma unroll
    for (int w = 0; w < kGroupWords; ++w) tile.mask[w][r][o] = bits.word[w];
  }
}

// sums += the products of eight columns, under byte `byte` of each pair's word.
template <class R>
FUSED_DROPOUT_DEVICE void add_columns(const ForwardShared<R>& tile, int col, int byte,
                                      int row_thread, int out_thread,
                                      const uint32_t (&bits)[kThreadTile][kThreadTile],
                                      R (&sums)[kThreadTile][kThreadTile]) {
  R x[kThreadTile][kByte], w[kThreadTile][kByte];
#pragma unroll
  for (int k = 0; k < kThreadTile; ++k) {
#pragma unroll
    for (int c = 0; c < kByte; c += 4) {
      load4(&tile.input[row_thread + k * kRowThreads][col + c], &x[k][c]);
      load4(&tile.weight[out_thread + k * kOutThreads][col + c], &w[k][c]);
    }
  }
#pragma unroll
  for (int r = 0; r < kThreadTile; ++r) {
#pragma unroll
    for (int o = 0; o < kThreadTile; ++o) {
#pragma unroll
      for (int c = 0; c < kByte; ++c) {
        if (bits[r][o] & 1u << (byte * kByte + c)) sums[r][o] = fma(x[r][c], w[o][c], sums[r][o]);
      }
    }
  }
}

// sums += the products of the columns in shared memory, whose mask bits start at `first_word`.
template <class R>
FUSED_DROPOUT_DEVICE void add_tile(const ForwardShared<R>& tile, int first_word, int row_thread,
                                   int out_thread, R (&sums)[kThreadTile][kThreadTile]) {
#pragma unroll 1
  for (int w = 0; w < kValueColumns<R> / 32; ++w) {
    const int word = first_word + w;
    uint32_t bits[kThreadTile][kThreadTile];
#pragma unroll
    for (int r = 0; r < kThreadTile; ++r) {
#pragma unroll
      for (int o = 0; o < kThreadTile; ++o) {
        bits[r][o] = tile.mask[word][row_thread + r * kRowThreads][out_thread + o * kOutThreads];
      }
    }
#pragma unroll  // R2P takes any byte of a register, if it is known which
    for (int byte = 0; byte < 4; ++byte) {
      add_columns(tile, w * 32 + byte * kByte, byte, row_thread, out_thread, bits, sums);
    }
  }
}

// partial[slice][n][o] = the slice's share of the sum, unscaled.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    forward_kernel(DropConnectProblem problem, RngSource rng, MatrixView input, MatrixView weight,
                   int64_t slices, Real<T>* partial) {
  using R = Real<T>;
  static_assert(sizeof(ForwardShared<R>) <= kSharedBytes, "more than some GPUs have");
  FUSED_DROPOUT_DYNAMIC_SHARED(ForwardShared<R>, tile);
  problem.rule = seeded(problem.rule, rng);
  const int64_t row_tiles = ceil_div(problem.rows, kForwardRows);
  const int64_t slice = blockIdx.x % slices;
  const ForwardPlace at = {blockIdx.x / slices % row_tiles * kForwardRows,
                           blockIdx.x / slices / row_tiles * kForwardOuts};
  const int out_thread = threadIdx.x % kOutThreads, row_thread = threadIdx.x / kOutThreads;
  R sums[kThreadTile][kThreadTile] = {};
  const Steps groups = steps_of(group_count(problem.in_features), slice, slices);
  for (int64_t group = groups.begin; group < groups.end; ++group) {
#pragma unroll 1
    for (int col = 0; col < kGroupColumns; col += kValueColumns<R>) {
      fill_values<T>(*tile, problem, input, weight, at, group * kGroupColumns + col);
      if (col == 0) fill_masks(*tile, problem, at, group);
      __syncthreads();
      add_tile(*tile, col / 32, row_thread, out_thread, sums);
      __syncthreads();
    }
  }
#pragma unroll
  for (int r = 0; r < kThreadTile; ++r) {
#pragma unroll
    for (int o = 0; o < kThreadTile; ++o) {
      const int64_t row = at.row + row_thread + r * kRowThreads;
      const int64_t out = at.out + out_thread + o * kOutThreads;
      if (row < problem.rows && out < problem.out_features) {
        partial[(slice * problem.rows + row) * problem.out_features + out] = sums[r][o];
      }
    }
  }
}

}  // namespace
}  // namespace fused_dropout::dropconnect
