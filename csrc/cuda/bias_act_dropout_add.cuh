// out = residual + dropout(activation(in + bias)), and the gradients of in and bias.
//
// A warp walks down some rows of a tile of columns (bias_act_dropout_add_tiles.cuh). A lane reads
// the biases of its columns once, loads the next row's elements before it computes this row's, and
// keeps the sums for the bias gradient in registers. The bits of the next 32 groups are drawn by a
// lane each. The warps of a block add their sums up through shared memory; those of the blocks go
// to a workspace [slice_groups, columns], which is a matrix [.., features] of partial sums, and a
// second kernel adds its rows. Where one block sees all rows there is no workspace and no second
// kernel. All orders follow from the shape, on every GPU the same.
//
// Floor: the bytes of in, residual and out (6 an element of bf16: 7.2e11 elements a second at the
// 4.3 TB/s that an H200 copies), backward of grad, in and d_input. That leaves 46 issue slots an
// element. Counted in sm_90's code for gelu of bf16, rows of 3072: forward 32 at p = 0.5 and 38 at
// 0.1, of which the activation is 17; backward 41. Prediction: forward 0.91 and 0.86 of copy speed,
// the gradient of the input 0.85, those of input and bias together 1.34 times their bytes.
#pragma once

#include "activations.cuh"
#include "bias_act_dropout_add_tiles.cuh"

namespace fused_dropout::bias_act_dropout_add {

// Any of `bias` and `residual` may be null.
template <class T>
struct ForwardOperands {
  const T* in;
  const T* bias;
  const T* residual;
  T* out;
};

// `in` and `bias` may be null; `d_bias` too, where it is not wanted. `sums` has room for
// workspace_size() of them.
template <class T, class S>
struct BackwardOperands {
  const T* grad;
  const T* in;
  const T* bias;
  T* d_input;
  T* d_bias;
  S* sums;
};

namespace {

// Whatever the activation made of a dropped element, a NaN too, does not count.

// y += scale * x where x is kept, by an addition under a predicate.
template <int kCount, class S>
FUSED_DROPOUT_DEVICE void add_kept(uint32_t bits, S scale, const S* x, S* y) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const S scaled = scale * x[i];
    if (bits & 1u << i) y[i] += scaled;
  }
}

// x = scale * x where x is kept, else 0.
template <int kCount, class S>
FUSED_DROPOUT_DEVICE void keep_scaled(uint32_t bits, S scale, S* x) {
  // With a 0 that it knows, the compiler makes a mask of 32 bits from every bit, not a predicate.
  uint32_t zero = 0;
  hold(zero);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    x[i] = bits & 1u << i ? scale * x[i] : static_cast<S>(float_from_bits(zero));
  }
}

template <int kCount, class S>
FUSED_DROPOUT_DEVICE void add(const S* y, S* x) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] += y[i];
}

// Of a lane's columns, what stands beside each column in shared memory.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void load_columns(const Real<T>* of_tile, int lane, Real<T>* x) {
#pragma unroll
  for (int i = 0; i < kPerLane<T, kVectors>; ++i) {
    x[i] = of_tile[tile_column<T, kVectors>(lane, i)];
  }
}

template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void store_columns(const Real<T>* x, int lane, Real<T>* of_tile) {
#pragma unroll
  for (int i = 0; i < kPerLane<T, kVectors>; ++i) {
    of_tile[tile_column<T, kVectors>(lane, i)] = x[i];
  }
}

// A lane's elements of a row in two tensors, of which the second may be null: then they are 0.
template <class T, bool kVectors>
struct LanePair {
  LaneElements<T, kVectors> a, b;
};

template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE LanePair<T, kVectors> load_pair(const T* a, const T* b, int64_t element,
                                                     int lane, int left) {
  return {load_lane<T, kVectors>(a + element, lane, left),
          load_lane<T, kVectors>(b + element, lane, b != nullptr ? left : 0)};
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    forward_kernel(MaskRule rule, RngSource rng, Activation activation, Real<T> scale, Grid grid,
                   ForwardOperands<T> tensors) {
  using S = Real<T>;
  using Memory = WarpMemory<T, kVectors>;
  constexpr int kCount = kPerLane<T, kVectors>;
  FUSED_DROPOUT_SHARED(Memory, of_warps, [kWarps]);
  const int lane = threadIdx.x % kWarpLanes;
  Memory& memory = of_warps[threadIdx.x / kWarpLanes];
  RowWalk walk = walk_of_warp<T, kVectors>(grid);
  const auto load_row = [&](int skipped) {
    return load_pair<T, kVectors>(tensors.in, tensors.residual,
                                  walk.element + skipped * grid.columns, lane,
                                  walk.rows > skipped ? walk.left : 0);
  };
  LanePair<T, kVectors> next = load_row(0);  // the row that comes next
  start_columns<T, kVectors>(tensors.bias, grid.features,
                             place_of_warp<T, kVectors>(grid).first_column, lane, memory);
  for_drawn_rows<T, kVectors>(rule, rng, grid, walk, lane, memory, [&] {
    with_activation<T>(activation, [&](auto function) {
      S b[kCount];
      load_columns<T, kVectors>(memory.bias, lane, b);
#pragma unroll 1
      for (int r = 0; r < kDrawnRows<T, kVectors> && walk.rows > 0; ++r) {
        S x[kCount], addend[kCount];
        next.a.widen_to(x);
        next.b.widen_to(addend);
        next = load_row(1);
        add<kCount>(b, x);
#pragma unroll
        for (int i = 0; i < kCount; ++i) x[i] = function.value(x[i]);
        const uint32_t kept =
            lane_bits<T, kVectors>(memory.bits[r], group_shift(walk.element), lane);
        add_kept<kCount>(kept, scale, x, addend);
        store_lane<T, kVectors>(addend, lane, walk.left, tensors.out + walk.element);
        walk.element += grid.columns;
        --walk.rows;
      }
    });
  });
}

// A tile's sums over the rows of a slice group: to the workspace, or to `d_bias` where there is but
// one group. Each warp of the group holds a part. All threads of the block take part.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void store_sums(const Grid& grid, const WarpMemory<T, kVectors>* of_warps,
                                     const BackwardOperands<T, Real<T>>& tensors) {
  constexpr int kCount = kPerLane<T, kVectors>;
  __syncthreads();
  const EpiloguePlace place = place_of_warp<T, kVectors>(grid);
  const int thread = static_cast<int>(again(threadIdx.x));
  const int warp = thread / kWarpLanes;
  const int lane = thread % kWarpLanes;
  if (warp % slice_warps(grid) != 0 || place.slice_group >= grid.slice_groups) return;
  Real<T> sums[kCount];
  load_columns<T, kVectors>(of_warps[warp].sums, lane, sums);
  for (int w = 1; w < slice_warps(grid); ++w) {
    Real<T> others[kCount];
    load_columns<T, kVectors>(of_warps[warp + w].sums, lane, others);
    add<kCount>(others, sums);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int64_t column = place.first_column + tile_column<T, kVectors>(lane, i);
    if (column >= grid.columns) continue;
    if (tensors.sums != nullptr) {
      tensors.sums[place.slice_group * grid.columns + column] = sums[i];
    } else {
      narrow(sums[i], tensors.d_bias + column);
    }
  }
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    backward_kernel(MaskRule rule, RngSource rng, Activation activation, Real<T> scale, Grid grid,
                    BackwardOperands<T, Real<T>> tensors) {
  using S = Real<T>;
  using Memory = WarpMemory<T, kVectors>;
  constexpr int kCount = kPerLane<T, kVectors>;
  FUSED_DROPOUT_SHARED(Memory, of_warps, [kWarps]);
  const int lane = threadIdx.x % kWarpLanes;
  Memory& memory = of_warps[threadIdx.x / kWarpLanes];
  RowWalk walk = walk_of_warp<T, kVectors>(grid);
  const auto load_row = [&](int skipped) {
    return load_pair<T, kVectors>(tensors.grad, tensors.in, walk.element + skipped * grid.columns,
                                  lane, walk.rows > skipped ? walk.left : 0);
  };
  LanePair<T, kVectors> next = load_row(0);  // the row that comes next
  start_columns<T, kVectors>(tensors.bias, grid.features,
                             place_of_warp<T, kVectors>(grid).first_column, lane, memory);
  for_drawn_rows<T, kVectors>(rule, rng, grid, walk, lane, memory, [&] {
    with_activation<T>(activation, [&](auto function) {
      S b[kCount], sums[kCount];
      load_columns<T, kVectors>(memory.bias, lane, b);
      load_columns<T, kVectors>(memory.sums, lane, sums);
#pragma unroll 1
      for (int r = 0; r < kDrawnRows<T, kVectors> && walk.rows > 0; ++r) {
        S g[kCount], x[kCount];
        next.a.widen_to(g);
        next.b.widen_to(x);
        next = load_row(1);
        add<kCount>(b, x);
#pragma unroll
        for (int i = 0; i < kCount; ++i) g[i] *= function.slope(x[i]);
        uint32_t kept = lane_bits<T, kVectors>(memory.bits[r], group_shift(walk.element), lane);
        if (walk.left < kTileColumns<T, kVectors>) kept &= existing<T, kVectors>(lane, walk.left);
        keep_scaled<kCount>(kept, scale, g);
        add<kCount>(g, sums);
        store_lane<T, kVectors>(g, lane, walk.left, tensors.d_input + walk.element);
        walk.element += grid.columns;
        --walk.rows;
      }
      store_columns<T, kVectors>(sums, lane, memory.sums);
    });
  });
  if (tensors.d_bias != nullptr) store_sums<T, kVectors>(grid, of_warps, tensors);
}

constexpr int kSumThreads = 32;  // in each direction of a block

// result[c] = the sum of column c of `sums` [rows, features]. A block has 32 columns; its threads
// in the direction y take rows in turn, and then the first adds up the others'.
template <class T>
__global__ void __launch_bounds__(kSumThreads* kSumThreads)
    column_sums_kernel(const Real<T>* sums, int64_t rows, int64_t features, T* result) {
  FUSED_DROPOUT_SHARED(Real<T>, partial, [kSumThreads][kSumThreads + 1]);
  const int64_t column = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  Real<T> own = 0;
  if (column < features) {
    for (int64_t row = threadIdx.y; row < rows; row += blockDim.y) {
      own += sums[row * features + column];
    }
  }
  partial[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.y == 0 && column < features) {
    Real<T> all = 0;
    for (int y = 0; y < static_cast<int>(blockDim.y); ++y) all += partial[y][threadIdx.x];
    narrow(all, result + column);
  }
}

// ---- launches ---------------------------------------------------------------------------------

template <class T>
Grid forward_grid(const MaskRule& rule, int64_t count, int64_t features,
                  const ForwardOperands<T>& tensors) {
  const bool vectors = epilogue_vectors_fit<T>(tensors.in, tensors.residual, tensors.out);
  return make_epilogue_grid<T>(rule, count, tensors.bias != nullptr ? features : 0, false, vectors);
}

template <class T>
Grid backward_grid(const MaskRule& rule, int64_t count, int64_t features,
                   const BackwardOperands<T, Real<T>>& tensors) {
  const bool vectors = epilogue_vectors_fit<T>(tensors.grad, tensors.in, tensors.d_input);
  const bool with_sums = tensors.d_bias != nullptr;
  const bool any = with_sums || tensors.bias != nullptr;
  return make_epilogue_grid<T>(rule, count, any ? features : 0, with_sums, vectors);
}

// Sums that the bias gradient needs room for.
inline int64_t workspace_size(const Grid& grid) {
  const bool is_whole = grid.slice_groups == 1 && grid.columns == grid.features.value;
  return is_whole ? 0 : grid.slice_groups * grid.columns;
}

template <class T>
cudaError_t launch_forward(const MaskRule& rule, const RngSource& rng, Activation activation,
                           double scale, const Grid& grid, const ForwardOperands<T>& tensors,
                           cudaStream_t stream) {
  const dim3 blocks = epilogue_blocks(grid);
  const Real<T> factor = static_cast<Real<T>>(scale);
  if constexpr (sizeof(T) < 8) {
    if (grid.vectors) {
      return launch_kernel<forward_kernel<T, true>>(blocks, dim3(kThreads), 0, stream, rule, rng,
                                                    activation, factor, grid, tensors);
    }
  }
  return launch_kernel<forward_kernel<T, false>>(blocks, dim3(kThreads), 0, stream, rule, rng,
                                                 activation, factor, grid, tensors);
}

// The bias gradient from the sums of its slice groups.
template <class T>
cudaError_t launch_column_sums(const Grid& grid, const Real<T>* sums, T* d_bias,
                               cudaStream_t stream) {
  const int64_t rows = grid.slice_groups * grid.columns / grid.features.value;
  unsigned threads = kSumThreads;  // in the direction of the rows, of which there may be few
  while (threads > rows) threads /= 2;
  const dim3 blocks(static_cast<unsigned>(ceil_div(grid.features.value, kSumThreads)));
  return launch_kernel<column_sums_kernel<T>>(blocks, dim3(kSumThreads, threads), 0, stream, sums,
                                              rows, grid.features.value, d_bias);
}

template <class T>
cudaError_t launch_backward(const MaskRule& rule, const RngSource& rng, Activation activation,
                            double scale, const Grid& grid,
                            const BackwardOperands<T, Real<T>>& tensors, cudaStream_t stream) {
  const dim3 blocks = epilogue_blocks(grid);
  const Real<T> factor = static_cast<Real<T>>(scale);
  const auto launch = [&] {
    if constexpr (sizeof(T) < 8) {
      if (grid.vectors) {
        return launch_kernel<backward_kernel<T, true>>(blocks, dim3(kThreads), 0, stream, rule, rng,
                                                       activation, factor, grid, tensors);
      }
    }
    return launch_kernel<backward_kernel<T, false>>(blocks, dim3(kThreads), 0, stream, rule, rng,
                                                    activation, factor, grid, tensors);
  };
  const cudaError_t error = launch();
  if (error != cudaSuccess || tensors.d_bias == nullptr || tensors.sums == nullptr) return error;
  return launch_column_sums<T>(grid, tensors.sums, tensors.d_bias, stream);
}

}  // namespace
}  // namespace fused_dropout::bias_act_dropout_add
