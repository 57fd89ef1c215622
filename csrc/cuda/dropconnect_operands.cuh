// What the DropConnect kernels share: operands of any strides on their way to shared memory, mask
// bits, and how sums are cut into slices.
#pragma once

#include <algorithm>

#include "divisor.cuh"
#include "elements.cuh"
#include "mask.cuh"

namespace fused_dropout::dropconnect {
namespace {

constexpr int kThreadTile = 4;  // rows (and output features) of a thread's tile
// The shared memory that a block may have on sm_86, sm_89 and sm_120; sm_80 and sm_90 have more.
constexpr size_t kSharedBytes = 99 * 1024;

// Element (row, col) of a matrix of any strides, 0 outside [rows, cols).
template <class T>
FUSED_DROPOUT_DEVICE Real<T> element(const MatrixView& matrix, int64_t row, int64_t col,
                                     int64_t rows, int64_t cols) {
  if (row >= rows || col >= cols) return 0;
  const T* data = static_cast<const T*>(matrix.data);
  return widen(data[row * matrix.row_stride + col * matrix.col_stride]);
}

// ---- operands -----------------------------------------------------------------------------------

// Neighbours that a 16-byte access to shared memory holds, where values are Real<T>s.
template <class R>
constexpr int kRun = 16 / static_cast<int>(sizeof(R));

// A run from shared memory; `from` is aligned to 16 bytes.
template <class R>
FUSED_DROPOUT_DEVICE void load_run(const void* from, R* to) {
  load_neighbours<R, kRun<R>>(static_cast<const R*>(from), to);
}

// A matrix of floats or doubles whose columns are neighbours and whose rows start at multiples of
// 16 bytes: what asynchronous copies can take runs of.
struct Operand {
  const unsigned char* data;
  int64_t row_bytes;  // from a row to the next
  int64_t rows;
  int64_t cols;
};

// A thread's share of copying tiles of kRows rows, each of kRuns runs, to shared memory, by a block
// of kThreads: run threadIdx.x % kRuns of every (kThreads / kRuns)-th row. Tiles follow each other
// along the columns or along the rows of the matrix.
//
// Layout says where a tile has its runs: Layout::place(row, run) elements from its start, and
// kRowStep rows further on Layout::kStep elements behind that.
template <class R, int kRows, int kRuns, int kThreads, class Layout>
class TileCopy {
 public:
  static constexpr int kRowStep = kThreads / kRuns;
  static constexpr int kCount = kRows / kRowStep;  // runs of a thread
  static constexpr int kCols = kRuns * kRun<R>;
  static_assert(kRowStep * kRuns == kThreads && kCount * kRowStep == kRows, "whole shares");

  // Where this thread's first run lies in a tile, in elements.
  FUSED_DROPOUT_DEVICE static uint32_t own_place() {
    uint32_t place = static_cast<uint32_t>(Layout::place(own_row(), own_run()));
    hold(place);
    return place;
  }

  // From the tile at (row, col) on, of which all threads know.
  FUSED_DROPOUT_DEVICE TileCopy(const Operand& operand, int64_t row, int64_t col, uint32_t place)
      : from_(operand.data + (row + own_row()) * operand.row_bytes +
              (col + own_col()) * static_cast<int64_t>(sizeof(R))),
        place_(place) {}

  // Starts to copy the present tile, all of which lies inside the matrix.
  FUSED_DROPOUT_DEVICE void start(const Operand& operand, R* tile) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      copy_async<16>(tile + place_ + k * Layout::kStep, from_ + k * (kRowStep * operand.row_bytes));
    }
  }

  // The same for any tile, which is at (row, col); what lies outside the matrix becomes 0.
  FUSED_DROPOUT_DEVICE void start_at_edge(const Operand& operand, int64_t row, int64_t col,
                                          R* tile) const {
    const int64_t left = operand.cols - col - own_col();
    const int count = left >= kRun<R> ? kRun<R> : left > 0 ? static_cast<int>(left) : 0;
#pragma unroll 1
    for (int k = 0; k < kCount; ++k) {
      const bool is_inside = row + own_row() + k * kRowStep < operand.rows && count > 0;
      copy_async<16>(tile + place_ + k * Layout::kStep,
                     is_inside ? from_ + k * (kRowStep * operand.row_bytes) : operand.data,
                     is_inside ? count * static_cast<int>(sizeof(R)) : 0);
    }
  }

  FUSED_DROPOUT_DEVICE void next_cols() { from_ += kRuns * 16; }
  FUSED_DROPOUT_DEVICE void next_rows(const Operand& operand) {
    from_ += kRows * operand.row_bytes;
  }

 private:
  FUSED_DROPOUT_DEVICE static int own_row() { return threadIdx.x / kRuns; }
  FUSED_DROPOUT_DEVICE static int own_run() { return threadIdx.x % kRuns; }
  FUSED_DROPOUT_DEVICE static int own_col() { return own_run() * kRun<R>; }

  const unsigned char* from_;  // this thread's first run of the present tile
  uint32_t place_;
};

// How many tiles of `rows` rows and `cols` columns, one after another along the columns or along
// the rows from (row, col) on, lie inside a matrix.
FUSED_DROPOUT_DEVICE int whole_along_cols(const Operand& operand, int64_t row, int64_t col,
                                          int rows, int cols) {
  const bool are_whole = row + rows <= operand.rows && col < operand.cols;
  return are_whole ? static_cast<int>((operand.cols - col) / cols) : 0;
}
FUSED_DROPOUT_DEVICE int whole_along_rows(const Operand& operand, int64_t row, int64_t col,
                                          int rows, int cols) {
  const bool are_whole = col + cols <= operand.cols && row < operand.rows;
  return are_whole ? static_cast<int>((operand.rows - row) / rows) : 0;
}

// ---- masks --------------------------------------------------------------------------------------

// The number of (mask, out, group) among the groups of all masks.
FUSED_DROPOUT_DEVICE uint64_t group_number(const DropConnectProblem& problem, int64_t mask,
                                           int64_t out, int64_t group) {
  const int64_t row_groups = group_count(problem.in_features);
  return static_cast<uint64_t>((mask * problem.out_features + out) * row_groups + group);
}

// Whether all numbers of groups fit in 32 bits.
FUSED_DROPOUT_DEVICE bool has_short_numbers(const DropConnectProblem& problem) {
  return group_number(problem, mask_count(problem), 0, 0) <= uint64_t{1} << 32;
}

// Where its bits stand in stored masks [groups][masks][outs rounded up][4 words].
FUSED_DROPOUT_DEVICE int64_t stored_word(const DropConnectProblem& problem, int64_t masks,
                                         int64_t mask, int64_t out, int64_t group) {
  return ((group * masks + mask) * stored_outs(problem.out_features) + out) * kGroupWords;
}

FUSED_DROPOUT_DEVICE GroupBits load_group(const uint32_t* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  return {{words.x, words.y, words.z, words.w}};
}

// The 128 mask bits of (mask, out, group), where there are so many masks: read or drawn.
FUSED_DROPOUT_DEVICE GroupBits group_of_mask(const DropConnectProblem& problem, int64_t masks,
                                             int64_t mask, int64_t out, int64_t group) {
  if (problem.mask_bits != nullptr) {
    return load_group(problem.mask_bits + stored_word(problem, masks, mask, out, group));
  }
  return keep_group(problem.rule, group_number(problem, mask, out, group));
}

// ---- slices -------------------------------------------------------------------------------------

// A sum of `steps` steps, cut into slices of `length` steps; the last may have fewer.
struct Slices {
  int64_t steps;
  int64_t length;
};

// One at least, if only of zeros.
FUSED_DROPOUT_INLINE int64_t slice_count(const Slices& slices) {
  return slices.steps == 0 ? 1 : ceil_div(slices.steps, slices.length);
}

// Slices of the same length, at most `length`.
inline Slices slices_of_length(int64_t steps, int64_t length) {
  const int64_t count = std::max<int64_t>(ceil_div(steps, length), 1);
  return {steps, std::max<int64_t>(ceil_div(steps, count), 1)};
}

// What partial sums cost, in the time of a step: a launch, and to write and read those of a block.
struct SliceCost {
  double launch;
  double sums;
};

// How the sums of `tiles` tiles are cut, where `slots` blocks run at the same time: so that the
// longest way through the waves of blocks is short.
inline Slices slices_of(int64_t tiles, int64_t steps, int64_t slots, SliceCost cost) {
  Slices best = slices_of_length(steps, std::max<int64_t>(steps, 1));
  constexpr double kWorthwhile = 0.9;  // blocks of a last wave need not wait for all before them
  double least = kWorthwhile * static_cast<double>(ceil_div(tiles, slots) * best.length);
  for (int64_t wanted = 2; wanted <= std::min<int64_t>(steps, slots); ++wanted) {
    const Slices slices = slices_of_length(steps, ceil_div(steps, wanted));
    const int64_t blocks = tiles * slice_count(slices);
    const double waves = static_cast<double>(ceil_div(blocks, slots) * slices.length);
    const double sums = cost.sums * static_cast<double>(blocks) / static_cast<double>(slots);
    if (waves + cost.launch + sums < least) best = slices, least = waves + cost.launch + sums;
  }
  return best;
}

}  // namespace
}  // namespace fused_dropout::dropconnect
