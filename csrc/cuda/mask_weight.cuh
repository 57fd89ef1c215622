// Weights under the masks of DropConnect, and sums of matrices under them.
//
// A warp draws 32 groups of mask bits, one in each lane, and then walks over them: 32 lanes times 4
// neighbours are the 128 columns of a group.
//
// Floor: the bytes of the results and of what is read; for one mask of 1024 x 1024 in bf16 4 MB,
// 1 us at 4.3 TB/s. Predicted, not measured, from sm_90's code: for a group of 128 elements a warp
// issues 45 instructions in bf16 and 35 in float, and 32 groups share 213 and 84 for each digit. An
// H200 issues 924 a ns, so that writing a group of bf16 leaves 55 slots and one of float 110: at
// one digit memory is just the limit in bf16, and at 16 digits a result takes 1.8 times the floor.
// The sum over masks issues 36 and 30 a group, reads the stack once and draws as much.
#pragma once

#include <algorithm>

#include "divisor.cuh"
#include "dropconnect_operands.cuh"

namespace fused_dropout::mask_weight {

// Matrices one after another, of any strides.
struct StackView {
  const void* data;
  int64_t mask_stride;
  int64_t row_stride;
  int64_t col_stride;
};

namespace {

constexpr int kNeighbours = kGroupColumns / kWarpLanes;  // columns of a lane

constexpr int kLeastBlocks = 2;  // of a multiprocessor: where it is to hold more, registers spill

// Rows first_row, first_row + 1, ... of the bit matrix, and groups of their columns. Row
// k * out_features + o is output feature o under mask k.
struct ApplyPart {
  int64_t first_row;
  int64_t rows;
  int64_t first_group;
  int64_t groups;
};

// Some masks and output features of a stack, and what is already known of their sums: Real<T>[outs,
// in_features], null if these are all masks.
struct SumPart {
  int64_t first_mask;
  int64_t masks;
  int64_t first_out;
  int64_t outs;
  void* sums;
  bool is_first;  // nothing is known yet
  bool is_last;   // the result is written
};

// A lane's columns of one group, 0 where the row has ended. `kAligned`: they are neighbours in
// memory, and a row ends with a lane.
template <class T, bool kAligned, class Index>
FUSED_DROPOUT_DEVICE void load_columns(const T* row, int64_t col_stride, Index col, Index cols,
                                       Real<T>* x) {
  if constexpr (kAligned) {
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) x[k] = 0;
    if (col < cols) load_neighbours<T, kNeighbours>(row + col, x);
  } else {
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) {
      x[k] = col + k < cols ? widen(row[(col + k) * col_stride]) : Real<T>(0);
    }
  }
}

template <class T, bool kAligned, class Index>
FUSED_DROPOUT_DEVICE void store_columns(const Real<T>* x, T* row, Index col, Index cols) {
  if constexpr (kAligned) {
    if (col < cols) store_neighbours<T, kNeighbours>(x, row + col);
  } else {
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) {
      if (col + k < cols) narrow(x[k], row + col + k);
    }
  }
}

// The bits of a lane's columns, the first of them lowest.
FUSED_DROPOUT_DEVICE uint32_t bits_of_lane(const GroupBits& bits, int lane) {
  return bits.word[lane / (32 / kNeighbours)] >> (lane % (32 / kNeighbours) * kNeighbours);
}

// What a lane hands to its warp: a group's bits and where its elements are.
struct alignas(16) MaskedGroup {
  GroupBits bits;
  int64_t from;  // in the weight
  int64_t to;    // in the results
  int columns;   // 128, or fewer at the end of a row; 0 if there is no such group
};

// out[k][o][i] = kept ? scale * weight[o][i] : 0 for a part of the masked weights, row by row.
// `problem` has one row for each mask. `out` may be the weight.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kElementThreads)
    apply_kernel(DropConnectProblem problem, RngSource rng, MatrixView weight, ApplyPart part,
                 Divisor outs, Divisor groups, T* out) {
  constexpr int kAtOnce = kAligned ? 4 : 1;  // groups that are read before the first is written
  FUSED_DROPOUT_SHARED(MaskedGroup, drawn, [kElementThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  MaskedGroup* const warp = &drawn[threadIdx.x - lane];
  problem.rule = seeded(problem.rule, rng);
  const Real<T> scale = static_cast<Real<T>>(problem.scale);
  const T* const weights = static_cast<const T*>(weight.data);
  const int64_t first_col = part.first_group * kGroupColumns;
  const int64_t left = problem.in_features - first_col;
  const int64_t cols = left < part.groups * kGroupColumns ? left : part.groups * kGroupColumns;
  const int64_t count = part.rows * part.groups;
  // `first` is of the warp, so that all lanes leave the loop together.
  for (int64_t first = thread_in_grid() - lane; first < count; first += threads_in_grid()) {
    warp[lane].columns = 0;
    if (first + lane < count) {
      const int64_t row = quotient(first + lane, groups);
      const int64_t group = first + lane - row * part.groups;
      const int64_t mask = quotient(part.first_row + row, outs);
      const int64_t o = part.first_row + row - mask * problem.out_features;
      const int64_t col = group * kGroupColumns;
      warp[lane] = {
          dropconnect::group_of_mask(problem, problem.rows, mask, o, part.first_group + group),
          o * weight.row_stride + (first_col + col) * weight.col_stride, row * cols + col,
          static_cast<int>(cols - col < kGroupColumns ? cols - col : kGroupColumns)};
    }
    __syncwarp();
    const int mine = static_cast<int>(count - first < kWarpLanes ? count - first : kWarpLanes);
    for (int g = 0; g < mine; g += kAtOnce) {
      Real<T> x[kAtOnce][kNeighbours];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        load_columns<T, kAligned>(weights + warp[g + j].from, weight.col_stride, lane * kNeighbours,
                                  warp[g + j].columns, x[j]);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const uint32_t kept = bits_of_lane(warp[g + j].bits, lane);
#pragma unroll
        for (int k = 0; k < kNeighbours; ++k) {
          x[j][k] = kept >> k & 1 ? scale * x[j][k] : Real<T>(0);
        }
        store_columns<T, kAligned>(x[j], out + warp[g + j].to, lane * kNeighbours,
                                   warp[g + j].columns);
      }
    }
    __syncwarp();
  }
}

// out[o][i] = scale * the sum over masks of the kept stack[k][o][i], for a part of both; stack and
// out begin with the part. A warp takes one group of one output feature, and draws the bits of 32
// masks at a time; it adds up so many masks before they join the total, which keeps rounding errors
// small.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kElementThreads, kLeastBlocks)
    sum_kernel(DropConnectProblem problem, RngSource rng, StackView stack, SumPart part,
               Divisor groups, T* out) {
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  GroupBits* const bits = &drawn[threadIdx.x - lane];
  problem.rule = seeded(problem.rule, rng);
  const int64_t cols = problem.in_features;
  const int64_t count = part.outs * groups.value;
  const int64_t warps = threads_in_grid() / kWarpLanes;
  Real<T>* const sums = static_cast<Real<T>*>(part.sums);
  for (int64_t i = thread_in_grid() / kWarpLanes; i < count; i += warps) {
    const int64_t o = quotient(i, groups);
    const int64_t group = i - o * groups.value;
    const int64_t col = group * kGroupColumns + lane * kNeighbours;
    const T* const row = static_cast<const T*>(stack.data) + o * stack.row_stride;
    Real<T> total[kNeighbours] = {};
    if (!part.is_first) load_columns<Real<T>, false>(sums + o * cols, 1, col, cols, total);
    for (int64_t first = 0; first < part.masks; first += kWarpLanes) {
      if (first + lane < part.masks) {
        bits[lane] = dropconnect::group_of_mask(
            problem, problem.rows, part.first_mask + first + lane, part.first_out + o, group);
      }
      __syncwarp();
      const int64_t left = part.masks - first;
      const int masks = static_cast<int>(left < kWarpLanes ? left : kWarpLanes);
      Real<T> subtotal[kNeighbours] = {};
      for (int m = 0; m < masks; ++m) {
        const uint32_t kept = bits_of_lane(bits[m], lane);
        Real<T> x[kNeighbours];
        load_columns<T, kAligned>(row + (first + m) * stack.mask_stride, stack.col_stride, col,
                                  cols, x);
#pragma unroll
        for (int k = 0; k < kNeighbours; ++k) subtotal[k] += kept >> k & 1 ? x[k] : Real<T>(0);
      }
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) total[k] += subtotal[k];
      __syncwarp();
    }
    if (!part.is_last) {
      store_columns<Real<T>, false>(total, sums + o * cols, col, cols);
      continue;
    }
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) total[k] *= static_cast<Real<T>>(problem.scale);
    store_columns<T, kAligned>(total, out + o * cols, col, cols);
  }
}

// ---- launches ---------------------------------------------------------------------------------

// Whether all rows of `data` begin where a lane's columns can be read or written in one access.
template <class T>
bool rows_fit(const void* data, int64_t cols, int64_t row_stride, int64_t col_stride) {
  return cols % kNeighbours == 0 && row_stride % kNeighbours == 0 && col_stride == 1 &&
         is_aligned(data, kNeighbours * sizeof(T));
}

inline ApplyPart all_of(const DropConnectProblem& problem) {
  return {0, problem.rows * problem.out_features, 0, group_count(problem.in_features)};
}

// The rows of `problem` are its masks.
template <class T>
cudaError_t launch_apply(const DropConnectProblem& problem, const RngSource& rng,
                         const MatrixView& weight, const ApplyPart& part, T* out,
                         cudaStream_t stream) {
  if (part.rows * part.groups == 0) return cudaSuccess;
  const int64_t first_col = part.first_group * kGroupColumns;
  const int64_t cols =
      std::min(problem.in_features - first_col, part.groups * int64_t{kGroupColumns});
  const dim3 blocks = element_blocks(part.rows * part.groups);
  const Divisor outs = make_divisor(problem.out_features);
  const Divisor groups = make_divisor(part.groups);
  if (rows_fit<T>(weight.data, cols, weight.row_stride, weight.col_stride) &&
      rows_fit<T>(out, cols, cols, 1)) {
    return launch_kernel<apply_kernel<T, true>>(blocks, dim3(kElementThreads), 0, stream, problem,
                                                rng, weight, part, outs, groups, out);
  }
  return launch_kernel<apply_kernel<T, false>>(blocks, dim3(kElementThreads), 0, stream, problem,
                                               rng, weight, part, outs, groups, out);
}

template <class T>
cudaError_t launch_sum_part(const DropConnectProblem& problem, const RngSource& rng,
                            const StackView& stack, const SumPart& part, T* out,
                            cudaStream_t stream) {
  const int64_t cols = problem.in_features;
  if (part.outs * cols == 0) return cudaSuccess;
  const Divisor groups = make_divisor(group_count(cols));
  const dim3 blocks = element_blocks(part.outs * groups.value * kWarpLanes);
  if (rows_fit<T>(stack.data, cols, stack.row_stride, stack.col_stride) &&
      stack.mask_stride % kNeighbours == 0 && rows_fit<T>(out, cols, cols, 1)) {
    return launch_kernel<sum_kernel<T, true>>(blocks, dim3(kElementThreads), 0, stream, problem,
                                              rng, stack, part, groups, out);
  }
  return launch_kernel<sum_kernel<T, false>>(blocks, dim3(kElementThreads), 0, stream, problem, rng,
                                             stack, part, groups, out);
}

template <class T>
cudaError_t launch_sum(const DropConnectProblem& problem, const RngSource& rng,
                       const StackView& stack, T* out, cudaStream_t stream) {
  if (problem.rows == 1) {  // nothing to add up
    return launch_apply<T>(problem, rng, {stack.data, stack.row_stride, stack.col_stride},
                           all_of(problem), out, stream);
  }
  const SumPart all = {0, problem.rows, 0, problem.out_features, nullptr, true, true};
  return launch_sum_part<T>(problem, rng, stack, all, out, stream);
}

}  // namespace
}  // namespace fused_dropout::mask_weight
