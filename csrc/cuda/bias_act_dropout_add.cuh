// out = residual + dropout(activation(in + bias)), and the gradients of in and bias.
//
// The elements are looked at as a matrix whose rows are whole rows of the tensor, joined until they
// are whole mask groups too: lcm(features, 128) columns. A warp takes a tile of 128 or 256 columns
// and walks down some rows of it. So a lane stays in its columns: it reads their biases once, keeps
// their sums for the bias gradient in registers, and all accesses are of 16 bytes. The bits of the
// next 32 groups are drawn by a lane each. The sums go to a workspace [slices, columns], which is a
// matrix [slices * joined rows, features] of partial sums, and a second kernel adds its rows. All
// orders follow from the shape, on every GPU the same.
//
// Floor: the bytes of in, residual and out (6 an element of bf16: 7e11 elements a second at the
// 4.3 TB/s that an H200 copies), backward of grad, in and d_input, and 1/16 of a float an element
// for the workspace. Prediction: that leaves 41 issue slots an element; gelu takes about 25, its
// derivative 35, drawing 16 digits 8, bits, conversions and addresses 5. So bf16 gelu is at the
// edge between memory and issue, everything else within memory's time.
#pragma once

#include "activations.cuh"
#include "elements.cuh"
#include "mask.cuh"

namespace fused_dropout::bias_act_dropout_add {

// The matrix, and the part of it that a warp takes at a time.
struct Grid {
  int64_t count;      // elements of the tensor, of which the last row may lack some
  int64_t features;   // the column of element k is k % features
  int64_t columns;    // a multiple of 128 unless there is only one row
  int64_t rows;       // of the matrix
  int64_t tiles;      // of each row
  int tile_groups;    // of the mask
  int64_t item_rows;  // rows that a warp walks down
  int64_t slices;     // that many rows make one
  bool by_digits;     // 16 lanes share the digits of a group
  bool vectors;       // accesses are of 16 bytes
};

// Any of `bias` and `residual` may be null.
template <class T>
struct ForwardOperands {
  const T* in;
  const T* bias;
  const T* residual;
  T* out;
};

// `in` and `bias` may be null; `sums` too, where no bias gradient is wanted.
template <class T, class S>
struct BackwardOperands {
  const T* grad;
  const T* in;
  const T* bias;
  T* d_input;
  S* sums;  // [slices, columns]
};

namespace {

constexpr int kBlocks = 2;              // of a multiprocessor: without a number, ptxas spills
constexpr int64_t kFreeColumns = 4096;  // of the matrix, where no column matters
constexpr int64_t kMaxSumRows = 512;    // that a lane adds up one after another

// Neighbouring elements of a lane, or every 32nd one where 16-byte accesses do not fit.
template <class T, bool kVectors>
constexpr int kPerLane = kVectors ? kVector<T> : 4;
template <class T, bool kVectors>
constexpr int kTileColumns = kWarpLanes * kPerLane<T, kVectors>;
template <class T, bool kVectors>
constexpr int kTileGroups = kTileColumns<T, kVectors> / kGroupColumns;

// Element i of a lane, counted from the start of its tile.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE int tile_column(int lane, int i) {
  return kVectors ? lane * kPerLane<T, kVectors> + i : i * kWarpLanes + lane;
}

// The keep bits of a lane's elements, lowest first, from those of the tile.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE uint32_t lane_bits(const GroupBits* tile, int lane) {
  if constexpr (kVectors) {
    const int column = tile_column<T, kVectors>(lane, 0);
    return tile[column / kGroupColumns].word[column % kGroupColumns / 32] >> column % 32;
  } else {
    uint32_t bits = 0;
#pragma unroll
    for (int w = 0; w < kGroupWords; ++w) bits |= (tile->word[w] >> lane & 1) << w;
    return bits;
  }
}

// A lane's elements of the row that starts at `tile`, of which `left` exist; 0 for the others.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void load_lane(const T* tile, int lane, int left, Real<T>* x) {
  constexpr int kCount = kPerLane<T, kVectors>;
  if constexpr (kVectors) {
    if ((lane + 1) * kCount <= left) {
      load_neighbours<T, kCount>(tile + lane * kCount, x);
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int column = tile_column<T, kVectors>(lane, i);
    x[i] = column < left ? widen(tile[column]) : Real<T>(0);
  }
}

template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void store_lane(const Real<T>* x, int lane, int left, T* tile) {
  constexpr int kCount = kPerLane<T, kVectors>;
  if constexpr (kVectors) {
    if ((lane + 1) * kCount <= left) {
      store_neighbours<T, kCount>(x, tile + lane * kCount);
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int column = tile_column<T, kVectors>(lane, i);
    if (column < left) narrow(x[i], tile + column);
  }
}

// The biases of a lane's columns, 0 without a bias.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void load_bias(const T* bias, int64_t features, int64_t first_column, int lane,
                                    Real<T>* b) {
#pragma unroll
  for (int i = 0; i < kPerLane<T, kVectors>; ++i) {
    const int64_t column = first_column + tile_column<T, kVectors>(lane, i);
    b[i] =
        bias != nullptr ? widen(bias[column - quotient(column, features) * features]) : Real<T>(0);
  }
}

// What a warp works on: a tile of columns in a slice of rows.
struct EpilogueItem {
  int64_t slice;
  int64_t first_column;
};

// The warp's bits of `rows` rows: tile after tile, the first group `first` and `row_groups` from
// one row to the next.
template <int kGroups>
FUSED_DROPOUT_DEVICE void draw_rows(const MaskRule& rule, bool by_digits, int64_t first,
                                    int64_t row_groups, int rows, int lane, GroupBits* bits) {
  const auto group = [&](int k) {
    return static_cast<uint64_t>(first + k / kGroups * row_groups + k % kGroups);
  };
  const int wanted = rows * kGroups;
  if (!by_digits) {
    if (lane < wanted) bits[lane] = keep_group(rule, keys_of(rule), group(lane));
    return;
  }
  for (int k = 0; k < wanted; k += kWarpLanes / kDigitLanes) {
    const int mine = k + lane / kDigitLanes;
    const GroupBits kept =
        keep_group_by_lanes(rule, keys_of(rule), group(mine), lane % kDigitLanes);
    if (lane % kDigitLanes == 0 && mine < wanted) bits[mine] = kept;
  }
}

// Calls f(first element, elements left in the tile, keep bits) for each row of the item that has
// elements in its tile.
template <class T, bool kVectors, class F>
FUSED_DROPOUT_DEVICE void for_rows(const MaskRule& rule, const Grid& grid, const EpilogueItem& item,
                                   int lane, GroupBits* bits, F f) {
  constexpr int kGroups = kTileGroups<T, kVectors>;
  constexpr int kDrawnRows = kWarpLanes / kGroups;
  constexpr int64_t kColumns = kTileColumns<T, kVectors>;
  const int64_t in_row = grid.columns - item.first_column;
  const int64_t first = item.slice * grid.item_rows;
  const int64_t last = first + grid.item_rows < grid.rows ? first + grid.item_rows : grid.rows;
  const int64_t row_groups = grid.columns / kGroupColumns;
  for (int64_t row = first; row < last; row += kDrawnRows) {
    const int rows = static_cast<int>(last - row < kDrawnRows ? last - row : kDrawnRows);
    draw_rows<kGroups>(rule, grid.by_digits, row * row_groups + item.first_column / kGroupColumns,
                       row_groups, rows, lane, bits);
    __syncwarp();
    for (int r = 0; r < rows; ++r) {
      const int64_t element = (row + r) * grid.columns + item.first_column;
      const int64_t in_all = grid.count - element;
      const int64_t left = in_all < in_row ? in_all : in_row;
      if (left <= 0) break;
      f(element, static_cast<int>(left < kColumns ? left : kColumns),
        lane_bits<T, kVectors>(bits + r * kGroups, lane));
    }
    __syncwarp();
  }
}

// Calls f(item) for each item of this warp.
template <class T, bool kVectors, class F>
FUSED_DROPOUT_DEVICE void for_items(const Grid& grid, F f) {
  const int64_t warps = threads_in_grid() / kWarpLanes;
  const int64_t items = grid.tiles * grid.slices;
  for (int64_t k = thread_in_grid() / kWarpLanes; k < items; k += warps) {
    const int64_t slice = quotient(k, grid.tiles);
    f(EpilogueItem{slice, (k - slice * grid.tiles) * kTileColumns<T, kVectors>});
  }
}

// Whatever the activation made of a dropped element, a NaN too, becomes 0.
template <int kCount, class S>
FUSED_DROPOUT_DEVICE void keep_scaled(uint32_t bits, S scale, S* x) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = bits >> i & 1 ? scale * x[i] : S(0);
}

template <int kCount, class S>
FUSED_DROPOUT_DEVICE void add(const S* y, S* x) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] += y[i];
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kElementThreads, kBlocks)
    forward_kernel(MaskRule rule, RngSource rng, Activation activation, Real<T> scale, Grid grid,
                   ForwardOperands<T> tensors) {
  constexpr int kCount = kPerLane<T, kVectors>;
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  GroupBits* const bits = &drawn[threadIdx.x - lane];
  rule = seeded(rule, rng);
  for_items<T, kVectors>(grid, [&](const EpilogueItem& item) {
    Real<T> b[kCount];
    load_bias<T, kVectors>(tensors.bias, grid.features, item.first_column, lane, b);
    for_rows<T, kVectors>(rule, grid, item, lane, bits,
                          [&](int64_t element, int left, uint32_t kept) {
                            Real<T> x[kCount];
                            load_lane<T, kVectors>(tensors.in + element, lane, left, x);
                            add<kCount>(b, x);
                            activate<kCount>(activation, x);
                            keep_scaled<kCount>(kept, scale, x);
                            if (tensors.residual != nullptr) {
                              Real<T> r[kCount];
                              load_lane<T, kVectors>(tensors.residual + element, lane, left, r);
                              add<kCount>(r, x);
                            }
                            store_lane<T, kVectors>(x, lane, left, tensors.out + element);
                          });
  });
}

// A tile's sums, into their slice's row of the workspace.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void store_sums(const Grid& grid, const EpilogueItem& item,
                                     const Real<T>* sums, int lane, Real<T>* workspace) {
#pragma unroll
  for (int i = 0; i < kPerLane<T, kVectors>; ++i) {
    const int64_t column = item.first_column + tile_column<T, kVectors>(lane, i);
    if (column < grid.columns) workspace[item.slice * grid.columns + column] = sums[i];
  }
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kElementThreads, kBlocks)
    backward_kernel(MaskRule rule, RngSource rng, Activation activation, Real<T> scale, Grid grid,
                    BackwardOperands<T, Real<T>> tensors) {
  constexpr int kCount = kPerLane<T, kVectors>;
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  GroupBits* const bits = &drawn[threadIdx.x - lane];
  rule = seeded(rule, rng);
  for_items<T, kVectors>(grid, [&](const EpilogueItem& item) {
    Real<T> b[kCount];
    load_bias<T, kVectors>(tensors.bias, grid.features, item.first_column, lane, b);
    Real<T> sums[kCount] = {};
    for_rows<T, kVectors>(rule, grid, item, lane, bits,
                          [&](int64_t element, int left, uint32_t kept) {
                            Real<T> grad[kCount];
                            load_lane<T, kVectors>(tensors.grad + element, lane, left, grad);
                            if (tensors.in != nullptr) {
                              Real<T> x[kCount];
                              load_lane<T, kVectors>(tensors.in + element, lane, left, x);
                              add<kCount>(b, x);
                              times_slopes<kCount>(activation, x, grad);
                            }
                            keep_scaled<kCount>(kept, scale, grad);
                            add<kCount>(grad, sums);
                            store_lane<T, kVectors>(grad, lane, left, tensors.d_input + element);
                          });
    if (tensors.sums != nullptr) store_sums<T, kVectors>(grid, item, sums, lane, tensors.sums);
  });
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

inline int64_t least_common_multiple(int64_t a, int64_t b) {
  int64_t x = a;
  for (int64_t y = b; y != 0;) {
    const int64_t rest = x % y;
    x = y;
    y = rest;
  }
  return a / x * b;
}

// Whether a kernel for T may access all of these 16 bytes at a time. A warp's accesses of doubles
// would cover half a group of the mask.
template <class T>
bool epilogue_vectors_fit(const void* a, const void* b, const void* c) {
  return sizeof(T) < 8 && is_aligned(a, 16) && is_aligned(b, 16) && is_aligned(c, 16);
}

// Rows for a warp to walk down, and what follows from them.
inline void set_item_rows(Grid* grid, int64_t item_rows, const MaskRule& rule) {
  if (item_rows < 1) item_rows = 1;
  grid->item_rows = item_rows < grid->rows ? item_rows : grid->rows;
  grid->slices = ceil_div(grid->rows, grid->item_rows);
  grid->by_digits = grid->item_rows * grid->tile_groups <= 2 && rule.digits > 1 &&
                    rule.digits <= static_cast<uint32_t>(kDigitLanes);
}

// As many rows as a warp can draw at once, where there are enough for all warps. With sums the
// walks are longer, so that there are fewer sums to store.
inline int64_t wanted_item_rows(const Grid& grid, bool with_sums) {
  const int64_t drawn_rows = kWarpLanes / grid.tile_groups;
  const int64_t tiles = grid.rows * grid.tiles;
  const int64_t drawn = groups_per_warp(tiles * grid.tile_groups) / grid.tile_groups;
  const int64_t longer = tiles / kWantedWarps / drawn_rows * drawn_rows;
  if (!with_sums || longer <= drawn) return drawn;
  return longer < kMaxSumRows ? longer : kMaxSumRows;
}

// How `count` > 0 elements are cut. features == 0: no column matters, there is no bias.
template <class T>
Grid make_epilogue_grid(const MaskRule& rule, int64_t count, int64_t features, bool with_sums,
                        bool vectors) {
  const int64_t tile = vectors ? kTileColumns<T, true> : kTileColumns<T, false>;
  Grid grid{};
  grid.count = count;
  grid.features = features > 0 ? features : 1;
  const int64_t whole =
      features > 0 ? least_common_multiple(features, kGroupColumns) : kFreeColumns;
  grid.columns = whole < count ? whole : count;
  grid.rows = ceil_div(count, grid.columns);
  grid.tiles = ceil_div(grid.columns, tile);
  grid.tile_groups = static_cast<int>(tile / kGroupColumns);
  grid.vectors = vectors;
  set_item_rows(&grid, wanted_item_rows(grid, with_sums), rule);
  return grid;
}

template <class T>
Grid forward_grid(const MaskRule& rule, int64_t count, int64_t features,
                  const ForwardOperands<T>& tensors) {
  const bool vectors = epilogue_vectors_fit<T>(tensors.in, tensors.residual, tensors.out);
  return make_epilogue_grid<T>(rule, count, tensors.bias != nullptr ? features : 0, false, vectors);
}

// Its workspace takes slices * columns Real<T>s if there are sums.
template <class T>
Grid backward_grid(const MaskRule& rule, int64_t count, int64_t features, bool with_sums,
                   const BackwardOperands<T, Real<T>>& tensors) {
  const bool vectors = epilogue_vectors_fit<T>(tensors.grad, tensors.in, tensors.d_input);
  const bool any = with_sums || tensors.bias != nullptr;
  return make_epilogue_grid<T>(rule, count, any ? features : 0, with_sums, vectors);
}

inline dim3 epilogue_blocks(const Grid& grid) {
  return element_blocks(grid.tiles * grid.slices * kWarpLanes);
}

template <class T>
cudaError_t launch_forward(const MaskRule& rule, const RngSource& rng, Activation activation,
                           double scale, const Grid& grid, const ForwardOperands<T>& tensors,
                           cudaStream_t stream) {
  const dim3 blocks = epilogue_blocks(grid);
  const Real<T> factor = static_cast<Real<T>>(scale);
  if constexpr (sizeof(T) < 8) {
    if (grid.vectors) {
      return launch_kernel<forward_kernel<T, true>>(blocks, dim3(kElementThreads), 0, stream, rule,
                                                    rng, activation, factor, grid, tensors);
    }
  }
  return launch_kernel<forward_kernel<T, false>>(blocks, dim3(kElementThreads), 0, stream, rule,
                                                 rng, activation, factor, grid, tensors);
}

template <class T>
cudaError_t launch_backward(const MaskRule& rule, const RngSource& rng, Activation activation,
                            double scale, const Grid& grid,
                            const BackwardOperands<T, Real<T>>& tensors, cudaStream_t stream) {
  const dim3 blocks = epilogue_blocks(grid);
  const Real<T> factor = static_cast<Real<T>>(scale);
  if constexpr (sizeof(T) < 8) {
    if (grid.vectors) {
      return launch_kernel<backward_kernel<T, true>>(blocks, dim3(kElementThreads), 0, stream, rule,
                                                     rng, activation, factor, grid, tensors);
    }
  }
  return launch_kernel<backward_kernel<T, false>>(blocks, dim3(kElementThreads), 0, stream, rule,
                                                  rng, activation, factor, grid, tensors);
}

// The bias gradient [features] from the sums that launch_backward left.
template <class T>
cudaError_t launch_bias_sums(const Grid& grid, const Real<T>* sums, T* result,
                             cudaStream_t stream) {
  const int64_t rows = grid.slices * grid.columns / grid.features;
  unsigned threads = kSumThreads;  // in the direction of the rows, of which there may be few
  while (threads > rows) threads /= 2;
  const dim3 blocks(static_cast<unsigned>(ceil_div(grid.features, kSumThreads)));
  return launch_kernel<column_sums_kernel<T>>(blocks, dim3(kSumThreads, threads), 0, stream, sums,
                                              rows, grid.features, result);
}

}  // namespace
}  // namespace fused_dropout::bias_act_dropout_add
