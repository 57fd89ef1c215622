// d_input and d_weight of a DropConnect layer (see dropconnect.cuh). Both are
// result[a][cols] = sum_b M panel[b][cols] grad[a, b] over one group of 128 columns: d_input with
// a = row, b = output feature, panel = weight; d_weight with a = output feature, b = row,
// panel = input.
#pragma once

#include "dropconnect_operands.cuh"

namespace fused_dropout::dropconnect {
namespace {

constexpr int kResultRows = 32;  // a's of a block's tile
constexpr int kChunk = 32;       // b's in shared memory at a time
constexpr int kColumns = 16;     // columns of a thread: one half-word of mask bits
constexpr int kColumnThreads = kGroupColumns / kColumns;
constexpr int kResultThreads = kResultRows / kThreadTile;
constexpr int kSplits =
    kBlockThreads / (kColumnThreads * kResultThreads);  // of a chunk, in a block
constexpr int kGradStride = kResultRows + 4;

template <class R>
struct OuterShared {
  R panel[kChunk][kGroupColumns];  // columns in the order of panel_place
  R grad[kChunk][kGradStride];
  uint4 mask[kChunk][kResultRows + 1];
  R sums[kResultRows][kGroupColumns];  // one split's, on its way to another
};

// A thread's 16 columns are four runs of 4, which lie 8 runs apart: so the 8 threads of a row load
// 8 neighbouring runs, which are in different banks.
FUSED_DROPOUT_INLINE int panel_place(int col) {
  const int thread = col / kColumns, run = col % kColumns / 4;
  return (run * kColumnThreads + thread) * 4 + col % 4;
}

struct OuterPlace {
  int64_t group;
  int64_t first_result;
  int64_t results;  // all of them: rows or out_features
  int64_t sources;  // length of the sum
};

template <class T, bool kOutsAreResults>
FUSED_DROPOUT_DEVICE void fill_outer(OuterShared<Real<T>>& tile, const DropConnectProblem& problem,
                                     const MatrixView& panel, const MatrixView& grad, OuterPlace at,
                                     int64_t first_source) {
  const int col = threadIdx.x;
#pragma unroll 4
  for (int b = 0; b < kChunk; ++b) {
    tile.panel[b][panel_place(col)] = element<T>(
        panel, first_source + b, at.group * kGroupColumns + col, at.sources, problem.in_features);
  }
  for (int k = threadIdx.x; k < kChunk * kResultRows; k += kBlockThreads) {
    // Neighbouring threads take neighbouring output features, along which both operands lie dense.
    const int fast = k % kChunk, slow = k / kChunk;
    const int a = kOutsAreResults ? fast : slow, b = kOutsAreResults ? slow : fast;
    const int64_t row = kOutsAreResults ? first_source + b : at.first_result + a;
    const int64_t out = kOutsAreResults ? at.first_result + a : first_source + b;
    GroupBits bits = group_of(0u);
    if (row < problem.rows && out < problem.out_features) {
      bits = mask_group(problem, row, out, at.group);
    }
    tile.grad[b][a] = element<T>(grad, row, out, problem.rows, problem.out_features);
    tile.mask[b][a] = make_uint4(bits.word[0], bits.word[1], bits.word[2], bits.word[3]);
  }
}

template <class R>
FUSED_DROPOUT_DEVICE void add_source(const OuterShared<R>& tile, int b, int column_thread,
                                     int result_thread, R (&sums)[kThreadTile][kColumns]) {
  R values[kColumns], grad[kThreadTile];
#pragma unroll
  for (int run = 0; run < kColumns / 4; ++run) {
    load4(&tile.panel[b][(run * kColumnThreads + column_thread) * 4], &values[run * 4]);
  }
  load4(&tile.grad[b][result_thread * kThreadTile], grad);
#pragma unroll
  for (int a = 0; a < kThreadTile; ++a) {
    const uint16_t* halves =
        reinterpret_cast<const uint16_t*>(&tile.mask[b][result_thread * kThreadTile + a]);
    const uint32_t bits = halves[column_thread];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (bits & 1u << c) sums[a][c] = fma(values[c], grad[a], sums[a][c]);
    }
  }
}

// Adds what split 1 of a block holds to split 0.
template <class R>
FUSED_DROPOUT_DEVICE void join_splits(OuterShared<R>& tile, int split, int column_thread,
                                      int result_thread, R (&sums)[kThreadTile][kColumns]) {
  static_assert(kSplits == 2, "one exchange joins two splits");
#pragma unroll
  for (int a = 0; a < kThreadTile; ++a) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int place = panel_place(column_thread * kColumns + c);
      if (split == 1) tile.sums[result_thread * kThreadTile + a][place] = sums[a][c];
    }
  }
  __syncthreads();
#pragma unroll
  for (int a = 0; a < kThreadTile; ++a) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int place = panel_place(column_thread * kColumns + c);
      if (split == 0) sums[a][c] += tile.sums[result_thread * kThreadTile + a][place];
    }
  }
}

// partial[slice][a][i] = the slice's share of the sum over b, unscaled.
template <class T, bool kOutsAreResults>
__global__ void __launch_bounds__(kBlockThreads)
    outer_kernel(DropConnectProblem problem, RngSource rng, MatrixView panel, MatrixView grad,
                 int64_t slices, Real<T>* partial) {
  using R = Real<T>;
  static_assert(sizeof(OuterShared<R>) <= kSharedBytes, "more than some GPUs have");
  FUSED_DROPOUT_DYNAMIC_SHARED(OuterShared<R>, tile);
  problem.rule = seeded(problem.rule, rng);
  const int64_t row_groups = group_count(problem.in_features);
  const int64_t slice = blockIdx.x % slices;
  OuterPlace at;
  at.group = blockIdx.x / slices % row_groups;
  at.first_result = blockIdx.x / slices / row_groups * kResultRows;
  at.results = kOutsAreResults ? problem.out_features : problem.rows;
  at.sources = kOutsAreResults ? problem.rows : problem.out_features;
  const int column_thread = threadIdx.x % kColumnThreads;
  const int result_thread = threadIdx.x / kColumnThreads % kResultThreads;
  const int split = threadIdx.x / (kColumnThreads * kResultThreads);
  R sums[kThreadTile][kColumns] = {};
  const Steps chunks = steps_of(ceil_div(at.sources, kChunk), slice, slices);
  for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
    fill_outer<T, kOutsAreResults>(*tile, problem, panel, grad, at, chunk * kChunk);
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kChunk / kSplits; ++k) {
      add_source(*tile, k * kSplits + split, column_thread, result_thread, sums);
    }
    __syncthreads();
  }
  join_splits(*tile, split, column_thread, result_thread, sums);
  if (split != 0) return;
#pragma unroll
  for (int a = 0; a < kThreadTile; ++a) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t row = at.first_result + result_thread * kThreadTile + a;
      const int64_t col = at.group * kGroupColumns + column_thread * kColumns + c;
      if (row < at.results && col < problem.in_features) {
        partial[(slice * at.results + row) * problem.in_features + col] = sums[a][c];
      }
    }
  }
}

}  // namespace
}  // namespace fused_dropout::dropconnect
