// Dropout of elements whose last dimension's bits are far apart, while those of the one before it
// are consecutive: channels_last, and matrices that have been transposed. The last two dimensions
// make planes of rows and columns. The bits of 32 rows are a word of each column; a warp turns 32 x
// 32 of them over by shuffles, into words of neighbours in memory.
//   * columns_kernel draws as well: a block takes 32 columns and as many rows as it can draw bits
//     for at once. Groups that begin or end in other tiles are drawn there again.
//   * transposed_kernel, where too many would be, reads a mask that has been drawn before.
//
// Floor: as in dropout.cuh. Predicted, for 16 x 256 x 64 x 64 of bf16, slots an element and share
// of a copy's speed: columns_kernel at one digit of the threshold 16 slots and 0.96, at 15 (p =
// 0.1) 22 and 0.88; with 56 x 56 pixels, where a tile draws a seventh more, 0.84 and 0.73. With 7 x
// 7 pixels drawing and transposed_kernel reach 0.85 and 0.64 together.
#pragma once

#include <algorithm>

#include "draw_tile.cuh"
#include "dropout_tile.cuh"
#include "masked_dims.cuh"

namespace fused_dropout::dropout {
namespace {

// How transposed_kernel cuts a tensor, whose last two dimensions make planes of rows and columns.
// A tile is 32 * strips rows of `width` columns, all where there are several strips; a lane reads
// the bits of one column of one strip at a time.
struct TransposedTiles {
  int64_t count;
  Divisor per_plane;  // tiles on top of each other
  Divisor per_row;    // side by side
  SmallDivisor width;
  int strips;
};

// The last dimension's bits are far apart and those of the one before it consecutive, as in
// channels_last. `kWide`: rows have more columns than a tile, so that its rows are apart in memory.
template <class T, int kCount, bool kWide, class Maps>
__global__ void __launch_bounds__(kElementThreads, kBlocks<kCount>)
    transposed_kernel(const uint32_t* bits, MaskedDims dims, TransposedTiles tiles, Maps maps,
                      Operands<T> tensors) {
  FUSED_DROPOUT_SHARED(GroupBits, turned, [kElementThreads]);  // row r of all strips together
  FUSED_DROPOUT_SHARED(uint32_t, gathered, [kElementThreads * kGroupWords]);
  const int lane = threadIdx.x % kWarpLanes;
  GroupBits* const rows_of_strips = &turned[threadIdx.x - lane];
  uint32_t* const words = words_of_warp(gathered);
  const int64_t rows = dims.size[dims.count - 2].value;
  const int64_t cols = dims.size[dims.count - 1].value;
  const int64_t stride = dims.mask_stride[dims.count - 1];
  const int tile_rows = 32 * tiles.strips;
  for (int64_t tile = thread_in_grid() / kWarpLanes; tile < tiles.count;
       tile += threads_in_grid() / kWarpLanes) {
    const int64_t above = quotient(tile, tiles.per_row);
    const int64_t plane = quotient(above, tiles.per_plane);
    const int64_t first_row = (above - plane * tiles.per_plane.value) * tile_rows;
    const int64_t first_col = (tile - above * tiles.per_row.value) * tiles.width.value;
    const int my_rows =
        static_cast<int>(rows - first_row < tile_rows ? rows - first_row : tile_rows);
    const int my_cols = static_cast<int>(cols - first_col < tiles.width.value ? cols - first_col
                                                                              : tiles.width.value);
    const int64_t first = (plane * rows + first_row) * cols + first_col;
    const Operands<T> operands = operands_from(tensors, first);
    const auto fill = [&] {
      const int64_t first_bit = place_of_element(dims, first).bit;
      uint32_t columns[kGroupWords];
#pragma unroll
      for (int w = 0; w < kGroupWords; ++w) {
        const int strip = small_quotient(32 * w + lane, tiles.width);
        const int col = 32 * w + lane - strip * tiles.width.value;
        const int left = my_rows - 32 * strip;
        columns[w] = 0;
        if (strip < tiles.strips && col < my_cols && left > 0) {
          columns[w] =
              bits_from(bits, first_bit + col * stride + 32 * strip, left < 32 ? left : 32);
        }
      }
#pragma unroll
      for (int w = 0; w < kGroupWords; ++w) {
        rows_of_strips[lane].word[w] = transposed(columns[w], lane);
      }
      __syncwarp();
#pragma unroll 1
      for (int k = lane * 32; k < my_rows * tiles.width.value; k += kWarpLanes * 32) {
        const int left = my_rows * tiles.width.value - k;
        const int count = left < 32 ? left : 32;
        uint32_t word = 0;
        int row = small_quotient(k, tiles.width);
        int col = k - row * tiles.width.value;
#pragma unroll 1
        for (int done = 0; done < count;) {
          const int row_left = tiles.width.value - col;
          const int n = row_left < count - done ? row_left : count - done;
          const uint32_t* const from = rows_of_strips[row % 32].word;
          word |= bits_of_row(from, row / 32 * tiles.width.value + col, 1, n) << done;
          done += n;
          ++row;
          col = 0;
        }
        words[k / 32] = word;
      }
    };
    const OneMap<Real<T>> map = {maps.from(first).at(0)};  // a plane is of one run
    if constexpr (kWide) {
      apply_tile<T, kCount>(operands, map, Rows{my_rows, my_cols, tiles.width, cols}, words, lane,
                            fill);
    } else {
      apply_neighbours<T, kCount>(operands, map, my_rows * my_cols, words, lane, fill);
    }
    __syncwarp();
  }
}

// How columns_kernel cuts a tensor: a tile is kTileColumns columns of `rows` rows, of which each
// warp takes its share. A column's bits in a tile are of at most `groups` groups.
struct ColumnTiles {
  int64_t count;
  Divisor per_plane;  // tiles on top of each other
  Divisor per_row;    // side by side
  int rows;
  SmallDivisor groups;
};

constexpr int kTileColumns = 32;
constexpr int kTileWarps = kElementThreads / kWarpLanes;
constexpr int kColumnGroups = kElementThreads / kTileColumns;  // at most: one for each thread

template <class T, int kCount>
__global__ void __launch_bounds__(kElementThreads, kBlocks<kCount>)
    columns_kernel(MaskRule rule, RngSource rng, MaskedDims dims, ColumnTiles tiles,
                   OneMap<Real<T>> map, Operands<T> tensors) {
  // An odd number of groups for each column, for the banks of shared memory.
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kTileColumns * (kColumnGroups + 1)]);
  FUSED_DROPOUT_SHARED(SharedGroups, waiting, [kTileWarps]);
  FUSED_DROPOUT_SHARED(uint32_t, gathered, [kElementThreads * kGroupWords]);
  const int warp = threadIdx.x / kWarpLanes;
  const int lane = threadIdx.x % kWarpLanes;
  uint32_t* const words = words_of_warp(gathered);
  rule = seeded(rule, rng);
  const int64_t rows = dims.size[dims.count - 2].value;
  const int64_t cols = dims.size[dims.count - 1].value;
  const int64_t stride = dims.mask_stride[dims.count - 1];
  const int pitch = tiles.groups.value | 1;
  const int warp_rows = tiles.rows / kTileWarps;
  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const int64_t above = quotient(tile, tiles.per_row);
    const int64_t plane = quotient(above, tiles.per_plane);
    const int64_t first_row = (above - plane * tiles.per_plane.value) * tiles.rows;
    const int64_t first_col = (tile - above * tiles.per_row.value) * kTileColumns;
    const int64_t first = (plane * rows + first_row) * cols + first_col;
    const int64_t rows_left = rows - first_row - warp * warp_rows;
    const int my_rows = static_cast<int>(rows_left < 0           ? 0
                                         : rows_left < warp_rows ? rows_left
                                                                 : warp_rows);
    const int my_cols =
        static_cast<int>(cols - first_col < kTileColumns ? cols - first_col : kTileColumns);
    const auto fill = [&] {
      const int64_t first_bit = place_of_element(dims, first).bit;
      const int warp_groups = tiles.groups.value * kTileColumns / kTileWarps;
      const auto column_of = [&](int k) {
        return small_quotient(warp * warp_groups + k, tiles.groups);
      };
      const auto group_of_column = [&](int k) {
        return warp * warp_groups + k - column_of(k) * tiles.groups.value;
      };
      draw_groups_of_tile(
          rule, warp_groups, lane, waiting[warp],
          [&](int k) {
            return static_cast<uint64_t>((first_bit + column_of(k) * stride) / kGroupColumns +
                                         group_of_column(k));
          },
          [&](int k) { return &drawn[column_of(k) * pitch + group_of_column(k)]; });
      __syncthreads();
      const int in_group = static_cast<int>((first_bit + lane * stride) % kGroupColumns);
      const int first_of_warp = lane * pitch * kGroupColumns + in_group + warp * warp_rows;
#pragma unroll
      for (int w = 0; w < kGroupWords; ++w) {
        const int left = my_rows - 32 * w;
        uint32_t column = 0;
        if (lane < my_cols && left > 0) {
          column = bits_from(drawn[0].word, first_of_warp + 32 * w, left < 32 ? left : 32);
        }
        words[32 * w + lane] = transposed(column, lane);
      }
    };
    const int64_t first_of_warp = my_rows > 0 ? first + warp * warp_rows * cols : first;
    apply_tile<T, kCount>(operands_from(tensors, first_of_warp), map,
                          RowsOf32{my_rows, my_cols, cols}, words, lane, fill);
    __syncthreads();
  }
}

// ---- launches ---------------------------------------------------------------------------------

// Whether these elements are for the kernels of this file.
inline bool is_transposed(const MaskedDims& dims) {
  const int last = dims.count - 1;
  return last > 0 && dims.mask_stride[last] > 1 && dims.mask_stride[last - 1] == 1;
}

// Tiles of at most `columns` columns, counted in all strips: 32, 64 or 128.
inline TransposedTiles transposed_tiles(const MaskedDims& dims, int64_t count, int columns) {
  const int64_t rows = dims.size[dims.count - 2].value;
  const int64_t cols = dims.size[dims.count - 1].value;
  const int64_t side_by_side = ceil_div(cols, columns);
  const int64_t width = side_by_side == 1 ? cols : ceil_div(ceil_div(cols, side_by_side), 32) * 32;
  const int64_t strips = std::min(columns / width, ceil_div(rows, 32));
  const int64_t per_plane = ceil_div(rows, 32 * strips);
  const int64_t per_row = ceil_div(cols, width);
  return {count / (rows * cols) * per_plane * per_row, make_divisor(per_plane),
          make_divisor(per_row), make_small_divisor(static_cast<int>(width)),
          static_cast<int>(strips)};
}

template <class T, class Maps>
cudaError_t launch_transposed_as(const uint32_t* bits, const MaskedDims& dims,
                                 const TransposedTiles& tiles, const Maps& maps,
                                 const Operands<T>& tensors, bool vectors, dim3 blocks,
                                 cudaStream_t stream) {
  const int64_t cols = dims.size[dims.count - 1].value;
  const int64_t plane = dims.size[dims.count - 2].value * cols;
  if (tiles.per_row.value > 1) {
    if (vectors && cols % kVector<T> == 0) {
      return launch_kernel<transposed_kernel<T, kVector<T>, true, Maps>>(
          blocks, dim3(kElementThreads), 0, stream, bits, dims, tiles, maps, tensors);
    }
    return launch_kernel<transposed_kernel<T, 1, true, Maps>>(
        blocks, dim3(kElementThreads), 0, stream, bits, dims, tiles, maps, tensors);
  }
  if (vectors && (plane % kVector<T> == 0 || plane == tensors.count)) {
    return launch_kernel<transposed_kernel<T, kVector<T>, false, Maps>>(
        blocks, dim3(kElementThreads), 0, stream, bits, dims, tiles, maps, tensors);
  }
  return launch_kernel<transposed_kernel<T, 1, false, Maps>>(
      blocks, dim3(kElementThreads), 0, stream, bits, dims, tiles, maps, tensors);
}

// Tiles of as many rows as `most_groups` groups have for certain, 2 to kColumnGroups.
inline ColumnTiles column_tiles(const MaskedDims& dims, int64_t count, int64_t most_groups) {
  const int64_t rows = dims.size[dims.count - 2].value;
  const int64_t cols = dims.size[dims.count - 1].value;
  bool starts_groups = rows % kGroupColumns == 0;  // every column of every tile
  for (int d = 0; d < dims.count; ++d) {
    starts_groups =
        starts_groups && (d == dims.count - 2 || dims.mask_stride[d] % kGroupColumns == 0);
  }
  const int64_t most_rows = (starts_groups ? most_groups : most_groups - 1) * kGroupColumns;
  const int64_t unit = starts_groups ? kGroupColumns : kTileWarps;
  const int64_t tile_rows = ceil_div(ceil_div(rows, ceil_div(rows, most_rows)), unit) * unit;
  const int64_t groups = group_count(tile_rows) + (starts_groups ? 0 : 1);
  const int64_t per_plane = ceil_div(rows, tile_rows);
  const int64_t per_row = ceil_div(cols, kTileColumns);
  return {count / (rows * cols) * per_plane * per_row, make_divisor(per_plane),
          make_divisor(per_row), static_cast<int>(tile_rows),
          make_small_divisor(static_cast<int>(groups))};
}

// Whether the tiles' groups are at most half as much again as the elements have.
inline bool few_are_drawn_again(const ColumnTiles& tiles, int64_t count) {
  const int64_t drawn = tiles.count * kTileColumns * tiles.groups.value * kGroupColumns;
  return drawn <= count + count / 2;
}

// The largest tiles that all of an H200's multiprocessors get two of, or the smallest.
inline ColumnTiles column_tiles(const MaskedDims& dims, int64_t count) {
  int64_t most_groups = kColumnGroups;
  ColumnTiles tiles = column_tiles(dims, count, most_groups);
  while (tiles.count < 2 * 132 && most_groups > 2) {
    const ColumnTiles smaller = column_tiles(dims, count, most_groups /= 2);
    if (!few_are_drawn_again(smaller, count)) break;
    tiles = smaller;
  }
  return tiles;
}

// Whether launch_columns takes these elements.
inline bool draws_by_columns(const MaskedDims& dims, int64_t count) {
  return is_transposed(dims) && few_are_drawn_again(column_tiles(dims, count), count);
}

template <class T>
cudaError_t launch_columns_as(const MaskRule& rule, const RngSource& rng, const MaskedDims& dims,
                              const ColumnTiles& tiles, const AffineMap& map,
                              const Operands<T>& tensors, bool vectors, dim3 blocks,
                              cudaStream_t stream) {
  if (vectors && dims.size[dims.count - 1].value % kVector<T> == 0) {
    return launch_kernel<columns_kernel<T, kVector<T>>>(
        blocks, dim3(kElementThreads), 0, stream, rule, rng, dims, tiles, one_map<T>(map), tensors);
  }
  return launch_kernel<columns_kernel<T, 1>>(blocks, dim3(kElementThreads), 0, stream, rule, rng,
                                             dims, tiles, one_map<T>(map), tensors);
}

template <class T>
cudaError_t launch_columns(const MaskRule& rule, const RngSource& rng, const MaskedDims& dims,
                           const AffineMap& map, const Operands<T>& tensors, cudaStream_t stream) {
  if (tensors.count == 0) return cudaSuccess;
  const ColumnTiles tiles = column_tiles(dims, tensors.count);
  return launch_columns_as<T>(rule, rng, dims, tiles, map, tensors, vectors_fit(tensors),
                              element_blocks(tiles.count * kElementThreads), stream);
}

}  // namespace
}  // namespace fused_dropout::dropout
