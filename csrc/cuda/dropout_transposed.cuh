// HEADER
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
__global__ void __launch_bounds__(kElementThreads, kBlocks)
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
    const int my_rows = static_cast<int>(rows - first_row < tile_rows ? rows - first_row : tile_rows);
    const int my_cols = static_cast<int>(
        cols - first_col < tiles.width.value ? cols - first_col : tiles.width.value);
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
          columns[w] = bits_from(bits, first_bit + col * stride + 32 * strip, left < 32 ? left : 32);
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
    const auto map = maps.from(first);
    if constexpr (kWide) {
      apply_tile<T, kCount>(operands, map, Rows{my_rows, my_cols, tiles.width, cols}, words, lane,
                            fill);
    } else {
      apply_neighbours<T, kCount>(operands, map, my_rows * my_cols, words, lane, fill);
    }
    __syncwarp();
  }
}

// ---- launches ---------------------------------------------------------------------------------

// Whether transposed_kernel takes these elements.
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

}  // namespace
}  // namespace fused_dropout::dropout
