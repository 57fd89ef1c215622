// Dropout: out = (kept ? scale * in + shift : fill) + residual, element by element.
//
// A warp works on 32 groups of 128 neighbours in memory at a time: it puts their mask bits into
// shared memory and walks over them with 16-byte accesses (dropout_tile.cuh). Where the bits come
// from:
//   * linear_kernel, for elements in the order of their mask bits: the lanes draw a group each. A
//     small tensor has too few groups for that; there 16 lanes share the digits of a group.
//   * shared_kernel, where a tile's elements have few bits, as under channel and path masks: the
//     warp draws the groups of these, and each lane puts words of 32 elements together.
//   * masked_kernel, for any other order: the same from a mask that has been drawn before.
//   * transposed_kernel, for channels_last: the same, 32 x 32 bits turned over by shuffles.
//
// Floor: the bytes of in and out, 4 an element of bf16, which is 1.07e12 elements a second at the
// 4.3 TB/s that an H200 copies.
#pragma once

#include <algorithm>

#include "draw_tile.cuh"
#include "dropout_tile.cuh"
#include "masked_dims.cuh"

namespace fused_dropout::dropout {
namespace {

// Of a multiprocessor, at least: drawing takes 80 registers beside the elements that have been read.
constexpr int kBlocks = 3;

constexpr int kTileElements = kWarpLanes * kGroupColumns;
constexpr int kTileWords = kTileElements / 32;

// A warp's groups first_group .. first_group + groups - 1 of the mask, groups <= 32, by 16 lanes
// each (kByDigits, for rules of 1 to 16 digits) or by one.
template <bool kByDigits>
FUSED_DROPOUT_DEVICE void draw(const MaskRule& rule, int64_t first_group, int groups, int lane,
                               GroupBits* bits) {
  const auto first = static_cast<uint64_t>(first_group);
  if constexpr (kByDigits) {
    for (int g = 0; g < groups; g += kWarpLanes / kDigitLanes) {
      const int mine = g + lane / kDigitLanes;
      const GroupBits kept = keep_group_by_lanes(
          rule, keys_of(rule), first + static_cast<uint64_t>(mine), lane % kDigitLanes);
      if (lane % kDigitLanes == 0 && mine < groups) bits[mine] = kept;
    }
  } else {
    FUSED_DROPOUT_SHARED(SharedGroups, waiting, [kElementThreads / kWarpLanes]);
    draw_groups_of_tile(rule, first, groups, lane, waiting[threadIdx.x / kWarpLanes], bits);
  }
}

// The words of a warp's tile.
FUSED_DROPOUT_DEVICE uint32_t* words_of_warp(uint32_t* words) {
  return words + threadIdx.x / kWarpLanes * kTileWords;
}

// Calls fill(first, count, lane) for the tiles of this warp, `warp_groups` <= 32 groups of
// neighbours each: it writes the mask bits of elements first .. first + count - 1 to `words`.
template <class T, int kCount, class Maps, class Fill>
FUSED_DROPOUT_DEVICE void for_each_tile(const Operands<T>& tensors, const Maps& maps,
                                        int warp_groups, const uint32_t* words, Fill fill) {
  const int lane = threadIdx.x % kWarpLanes;
  const int tile = warp_groups * kGroupColumns;
  const int64_t step = threads_in_grid() / kWarpLanes * tile;
  for (int64_t first = thread_in_grid() / kWarpLanes * tile; first < tensors.count; first += step) {
    const int64_t left = tensors.count - first;
    const int count = static_cast<int>(left < tile ? left : tile);
    apply_neighbours<T, kCount>(operands_from(tensors, first), maps.from(first), count, words, lane,
                                [&] { fill(first, count, lane); });
    __syncwarp();
  }
}

template <class T, int kCount, bool kByDigits>
__global__ void __launch_bounds__(kElementThreads, kBlocks)
    linear_kernel(MaskRule rule, RngSource rng, OneMap<Real<T>> map, Operands<T> tensors,
                  int warp_groups) {
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  GroupBits* const bits = &drawn[threadIdx.x / kWarpLanes * kWarpLanes];
  rule = seeded(rule, rng);
  for_each_tile<T, kCount>(
      tensors, map, warp_groups, bits->word, [&](int64_t first, int count, int lane) {
        draw<kByDigits>(rule, first / kGroupColumns, static_cast<int>(group_count(count)), lane,
                        bits);
      });
}

// Writes the bits of a tile's elements, which `bits` has from bit `origin` of the mask on.
FUSED_DROPOUT_DEVICE void gather_words(const uint32_t* bits, int64_t origin, const MaskedDims& dims,
                                       int64_t first, int count, int lane, uint32_t* words) {
#pragma unroll 1
  for (int k = lane * 32; k < count; k += kWarpLanes * 32) {
    words[k / 32] = bits_of_neighbours(bits, origin, dims, first + k,
                                       count - k < 32 ? count - k : 32);
  }
}

template <class T, int kCount, class Maps>
__global__ void __launch_bounds__(kElementThreads, kBlocks)
    masked_kernel(const uint32_t* bits, MaskedDims dims, Maps maps, Operands<T> tensors,
                  int warp_groups) {
  FUSED_DROPOUT_SHARED(uint32_t, gathered, [kElementThreads * kGroupWords]);
  uint32_t* const words = words_of_warp(gathered);
  for_each_tile<T, kCount>(tensors, maps, warp_groups, words,
                           [&](int64_t first, int count, int lane) {
                             gather_words(bits, 0, dims, first, count, lane, words);
                           });
}

// Which bits of the mask the elements of a tile have: those of block k of `elements` elements are
// among the `extent` bits from k * stride on.
struct BitBlocks {
  Divisor elements;
  int64_t stride;
  int64_t extent;
};

// A tile's elements have bits of at most 32 groups.
template <class T, int kCount, bool kByDigits>
__global__ void __launch_bounds__(kElementThreads, kBlocks)
    shared_kernel(MaskRule rule, RngSource rng, BitBlocks blocks, MaskedDims dims,
                  OneMap<Real<T>> map, Operands<T> tensors, int warp_groups) {
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  FUSED_DROPOUT_SHARED(uint32_t, gathered, [kElementThreads * kGroupWords]);
  GroupBits* const bits = &drawn[threadIdx.x / kWarpLanes * kWarpLanes];
  uint32_t* const words = words_of_warp(gathered);
  rule = seeded(rule, rng);
  for_each_tile<T, kCount>(
      tensors, map, warp_groups, words, [&](int64_t first, int count, int lane) {
        const int64_t first_group =
            quotient(first, blocks.elements) * blocks.stride / kGroupColumns;
        const int64_t last_bit =
            quotient(first + count - 1, blocks.elements) * blocks.stride + blocks.extent - 1;
        draw<kByDigits>(rule, first_group,
                        static_cast<int>(last_bit / kGroupColumns - first_group) + 1, lane, bits);
        __syncwarp();
        gather_words(bits->word, first_group * kGroupColumns, dims, first, count, lane, words);
      });
}

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

template <class T>
bool vectors_fit(const Operands<T>& tensors) {
  return is_aligned(tensors.in, 16) && is_aligned(tensors.residual, 16) &&
         is_aligned(tensors.out, 16);
}

inline dim3 tile_blocks(int64_t tiles) { return element_blocks(tiles * kWarpLanes); }

inline dim3 tile_blocks(int64_t elements, int warp_groups) {
  return tile_blocks(ceil_div(group_count(elements), warp_groups));
}

template <class T, bool kByDigits>
cudaError_t launch_linear_as(const MaskRule& rule, const RngSource& rng, const AffineMap& map,
                             const Operands<T>& tensors, int warp_groups, bool vectors, dim3 blocks,
                             cudaStream_t stream) {
  if (vectors) {
    return launch_kernel<linear_kernel<T, kVector<T>, kByDigits>>(
        blocks, dim3(kElementThreads), 0, stream, rule, rng, one_map<T>(map), tensors, warp_groups);
  }
  return launch_kernel<linear_kernel<T, 1, kByDigits>>(
      blocks, dim3(kElementThreads), 0, stream, rule, rng, one_map<T>(map), tensors, warp_groups);
}

// Whether 16 lanes can share the digits of a group, and gain by it.
inline bool shares_digits(const MaskRule& rule) {
  return rule.digits > 1 && rule.digits <= static_cast<uint32_t>(kDigitLanes);
}

// Elements in the order of their mask bits.
template <class T>
cudaError_t launch_linear(const MaskRule& rule, const RngSource& rng, const AffineMap& map,
                          const Operands<T>& tensors, cudaStream_t stream) {
  if (tensors.count == 0) return cudaSuccess;
  const int warp_groups = groups_per_warp(group_count(tensors.count));
  const auto launch =
      warp_groups <= 2 && shares_digits(rule) ? launch_linear_as<T, true> : launch_linear_as<T, false>;
  return launch(rule, rng, map, tensors, warp_groups, vectors_fit(tensors),
                tile_blocks(tensors.count, warp_groups), stream);
}

// ---- shared masks

// The outermost dimension makes the blocks if the bits of one of its indices lie below those of
// the next, else all elements are one block.
inline BitBlocks bit_blocks(const MaskedDims& dims, int64_t count) {
  int64_t extent = 1;  // of the other dimensions
  for (int d = 1; d < dims.count; ++d) extent += (dims.size[d].value - 1) * dims.mask_stride[d];
  const int64_t stride = dims.mask_stride[0];
  if (stride >= extent) return {make_divisor(count / dims.size[0].value), stride, extent};
  return {make_divisor(count), 0, extent + (dims.size[0].value - 1) * stride};
}

// Groups that the bits of `elements` >= 2 neighbours have at most.
inline int64_t most_groups(const BitBlocks& blocks, int64_t elements) {
  const int64_t other_blocks = (elements - 2) / blocks.elements.value + 1;
  return group_count(other_blocks * blocks.stride + blocks.extent + kGroupColumns - 1);
}

// Whether launch_shared takes these elements. The others need a mask that has been drawn.
inline bool draws_by_tile(const MaskedDims& dims, int64_t count) {
  const int64_t tile = int64_t{groups_per_warp(group_count(count))} * kGroupColumns;
  return most_groups(bit_blocks(dims, count), tile) <= kWarpLanes;
}

template <class T, bool kByDigits>
cudaError_t launch_shared_as(const MaskRule& rule, const RngSource& rng, const MaskedDims& dims,
                             const AffineMap& map, const Operands<T>& tensors, int warp_groups,
                             bool vectors, dim3 blocks, cudaStream_t stream) {
  const BitBlocks bits = bit_blocks(dims, tensors.count);
  if (vectors) {
    return launch_kernel<shared_kernel<T, kVector<T>, kByDigits>>(
        blocks, dim3(kElementThreads), 0, stream, rule, rng, bits, dims, one_map<T>(map), tensors,
        warp_groups);
  }
  return launch_kernel<shared_kernel<T, 1, kByDigits>>(blocks, dim3(kElementThreads), 0, stream,
                                                       rule, rng, bits, dims, one_map<T>(map),
                                                       tensors, warp_groups);
}

// Elements of which a tile has few bits (draws_by_tile).
template <class T>
cudaError_t launch_shared(const MaskRule& rule, const RngSource& rng, const MaskedDims& dims,
                          const AffineMap& map, const Operands<T>& tensors, cudaStream_t stream) {
  constexpr int64_t kFewGroups = 4;
  if (tensors.count == 0) return cudaSuccess;
  const int warp_groups = groups_per_warp(group_count(tensors.count));
  const int64_t groups =
      most_groups(bit_blocks(dims, tensors.count), int64_t{warp_groups} * kGroupColumns);
  const auto launch = groups <= kFewGroups && shares_digits(rule) ? launch_shared_as<T, true>
                                                                  : launch_shared_as<T, false>;
  return launch(rule, rng, dims, map, tensors, warp_groups, vectors_fit(tensors),
                tile_blocks(tensors.count, warp_groups), stream);
}

// ---- masks that have been drawn

template <class T, class Maps>
cudaError_t launch_masked_as(const uint32_t* bits, const MaskedDims& dims, const Maps& maps,
                             const Operands<T>& tensors, int warp_groups, bool vectors, dim3 blocks,
                             cudaStream_t stream) {
  if (vectors) {
    return launch_kernel<masked_kernel<T, kVector<T>, Maps>>(
        blocks, dim3(kElementThreads), 0, stream, bits, dims, maps, tensors, warp_groups);
  }
  return launch_kernel<masked_kernel<T, 1, Maps>>(blocks, dim3(kElementThreads), 0, stream, bits,
                                                  dims, maps, tensors, warp_groups);
}

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

// Elements in any order of their mask bits, which `bits` holds.
template <class T, class Maps>
cudaError_t launch_masked(const uint32_t* bits, const MaskedDims& dims, const Maps& maps,
                          const Operands<T>& tensors, cudaStream_t stream) {
  if (tensors.count == 0) return cudaSuccess;
  const bool vectors = vectors_fit(tensors) && maps.allows_vectors_of(kVector<T>);
  if (is_transposed(dims)) {
    int columns = kGroupColumns;
    TransposedTiles tiles = transposed_tiles(dims, tensors.count, columns);
    while (tiles.count < kWantedWarps && columns > 32) {
      tiles = transposed_tiles(dims, tensors.count, columns /= 2);
    }
    return launch_transposed_as<T>(bits, dims, tiles, maps, tensors, vectors,
                                   tile_blocks(tiles.count), stream);
  }
  const int warp_groups = groups_per_warp(group_count(tensors.count));
  return launch_masked_as<T>(bits, dims, maps, tensors, warp_groups, vectors,
                             tile_blocks(tensors.count, warp_groups), stream);
}

}  // namespace
}  // namespace fused_dropout::dropout
