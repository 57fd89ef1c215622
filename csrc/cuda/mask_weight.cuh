// Weights under the masks of DropConnect, and sums of matrices under them.
//
// A warp draws 32 groups of mask bits, one in each lane, and then walks over them: 32 lanes times 4
// neighbours are the 128 columns of a group.
//
// Floor: the bytes of the results and of what is read; for one mask of 1024 x 1024 in bf16 4 MB,
// 1 us at 4.3 TB/s. Predicted, not measured: drawing takes a lane one Philox call a digit (100
// issue slots) for 128 elements, and an element about 12 slots, of which half find the place of its
// four; the floor leaves 14. So at one digit memory is just the limit, and at 16 digits a result
// takes about 1.8 times the floor. The sum over masks reads the stack once and draws as much.
#pragma once

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

// What both kernels know of the layer: one row of `problem` for each mask.
struct Shape {
  DropConnectProblem problem;
  Divisor outs;    // output features
  Divisor groups;  // of a row
};

inline Shape make_shape(const DropConnectProblem& problem) {
  return {problem, make_divisor(problem.out_features),
          make_divisor(group_count(problem.in_features))};
}

// A lane's columns of one group, 0 where the row has ended. `kAligned`: they are neighbours in
// memory, and a row ends with a lane.
template <class T, bool kAligned>
FUSED_DROPOUT_DEVICE void load_columns(const T* row, int64_t col_stride, int64_t col, int64_t cols,
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

template <class T, bool kAligned>
FUSED_DROPOUT_DEVICE void store_columns(const Real<T>* x, T* row, int64_t col, int64_t cols) {
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

// out[k][o][i] = kept ? scale * weight[o][i] : 0 for rows first_row, first_row + 1, ... of the bit
// matrix; row k * out_features + o is output feature o under mask k. `out` begins with first_row.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kElementThreads)
    apply_kernel(Shape shape, RngSource rng, MatrixView weight, int64_t first_row, int64_t rows,
                 T* out) {
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  GroupBits* const bits = &drawn[threadIdx.x - lane];
  DropConnectProblem& problem = shape.problem;
  problem.rule = seeded(problem.rule, rng);
  const Real<T> scale = static_cast<Real<T>>(problem.scale);
  const int64_t cols = problem.in_features;
  const int64_t count = rows * shape.groups.value;
  // `first` is of the warp, so that all lanes leave the loop together.
  for (int64_t first = thread_in_grid() - lane; first < count; first += threads_in_grid()) {
    if (first + lane < count) {
      const int64_t row = quotient(first + lane, shape.groups);
      const int64_t mask = quotient(first_row + row, shape.outs);
      bits[lane] = dropconnect::mask_group(problem, mask, first_row + row - mask * shape.outs.value,
                                           first + lane - row * shape.groups.value);
    }
    __syncwarp();
    const int mine = static_cast<int>(count - first < kWarpLanes ? count - first : kWarpLanes);
    for (int g = 0; g < mine; ++g) {
      const int64_t row = quotient(first + g, shape.groups);
      const int64_t o = first_row + row - quotient(first_row + row, shape.outs) * shape.outs.value;
      const int64_t col =
          (first + g - row * shape.groups.value) * kGroupColumns + lane * kNeighbours;
      const uint32_t kept = bits_of_lane(bits[g], lane);
      Real<T> x[kNeighbours];
      load_columns<T, kAligned>(static_cast<const T*>(weight.data) + o * weight.row_stride,
                                weight.col_stride, col, cols, x);
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) x[k] = kept >> k & 1 ? scale * x[k] : Real<T>(0);
      store_columns<T, kAligned>(x, out + row * cols, col, cols);
    }
    __syncwarp();
  }
}

// out[o][i] = scale * the sum over masks of the kept stack[k][o][i]. A warp takes one group of one
// output feature, and draws the bits of 32 masks at a time; it adds up so many masks before they
// join the total, which keeps rounding errors small.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kElementThreads)
    sum_kernel(Shape shape, RngSource rng, StackView stack, T* out) {
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  GroupBits* const bits = &drawn[threadIdx.x - lane];
  DropConnectProblem& problem = shape.problem;
  problem.rule = seeded(problem.rule, rng);
  const int64_t cols = problem.in_features;
  const int64_t count = problem.out_features * shape.groups.value;
  const int64_t warps = threads_in_grid() / kWarpLanes;
  for (int64_t i = thread_in_grid() / kWarpLanes; i < count; i += warps) {
    const int64_t o = quotient(i, shape.groups);
    const int64_t group = i - o * shape.groups.value;
    const int64_t col = group * kGroupColumns + lane * kNeighbours;
    const T* const row = static_cast<const T*>(stack.data) + o * stack.row_stride;
    Real<T> total[kNeighbours] = {};
    for (int64_t first = 0; first < problem.rows; first += kWarpLanes) {
      if (first + lane < problem.rows) {
        bits[lane] = dropconnect::mask_group(problem, first + lane, o, group);
      }
      __syncwarp();
      const int64_t left = problem.rows - first;
      const int masks = static_cast<int>(left < kWarpLanes ? left : kWarpLanes);
      Real<T> part[kNeighbours] = {};
      for (int m = 0; m < masks; ++m) {
        const uint32_t kept = bits_of_lane(bits[m], lane);
        Real<T> x[kNeighbours];
        load_columns<T, kAligned>(row + (first + m) * stack.mask_stride, stack.col_stride, col,
                                  cols, x);
#pragma unroll
        for (int k = 0; k < kNeighbours; ++k) part[k] += kept >> k & 1 ? x[k] : Real<T>(0);
      }
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) total[k] += part[k];
      __syncwarp();
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

// Rows first_row, first_row + 1, ... of the bit matrix of `problem`, whose rows are its masks.
template <class T>
cudaError_t launch_apply(const DropConnectProblem& problem, const RngSource& rng,
                         const MatrixView& weight, int64_t first_row, int64_t rows, T* out,
                         cudaStream_t stream) {
  const int64_t cols = problem.in_features;
  if (rows * cols == 0) return cudaSuccess;
  const dim3 blocks = element_blocks(rows * group_count(cols));
  const Shape shape = make_shape(problem);
  if (rows_fit<T>(weight.data, cols, weight.row_stride, weight.col_stride) &&
      rows_fit<T>(out, cols, cols, 1)) {
    return launch_kernel<apply_kernel<T, true>>(blocks, dim3(kElementThreads), 0, stream, shape,
                                                rng, weight, first_row, rows, out);
  }
  return launch_kernel<apply_kernel<T, false>>(blocks, dim3(kElementThreads), 0, stream, shape, rng,
                                               weight, first_row, rows, out);
}

template <class T>
cudaError_t launch_sum(const DropConnectProblem& problem, const RngSource& rng,
                       const StackView& stack, T* out, cudaStream_t stream) {
  const int64_t cols = problem.in_features;
  if (problem.out_features * cols == 0) return cudaSuccess;
  if (problem.rows == 1) {  // nothing to add up
    return launch_apply<T>(problem, rng, {stack.data, stack.row_stride, stack.col_stride}, 0,
                           problem.out_features, out, stream);
  }
  const dim3 blocks = element_blocks(problem.out_features * group_count(cols) * kWarpLanes);
  const Shape shape = make_shape(problem);
  if (rows_fit<T>(stack.data, cols, stack.row_stride, stack.col_stride) &&
      stack.mask_stride % kNeighbours == 0 && rows_fit<T>(out, cols, cols, 1)) {
    return launch_kernel<sum_kernel<T, true>>(blocks, dim3(kElementThreads), 0, stream, shape, rng,
                                              stack, out);
  }
  return launch_kernel<sum_kernel<T, false>>(blocks, dim3(kElementThreads), 0, stream, shape, rng,
                                             stack, out);
}

}  // namespace
}  // namespace fused_dropout::mask_weight
