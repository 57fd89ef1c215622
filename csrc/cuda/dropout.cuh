// Dropout: out = (kept ? scale * in + shift : fill) + residual, element by element.
//
// A warp works on up to 32 groups of 128 neighbours in memory at a time: it puts their mask bits
// into shared memory and walks over them with 16-byte accesses (dropout_tile.cuh). Where the bits
// come from:
//   * linear_kernel, for elements in the order of their mask bits: the lanes draw a group each. A
//     small tensor has too few groups for that; there 16 lanes share the digits of a group.
//   * shared_kernel, where a tile's elements have few bits, as under channel and path masks: the
//     warp draws the groups of these, and the lanes put words of 32 elements together, run by run.
//   * columns_kernel and transposed_kernel, for channels_last (dropout_transposed.cuh).
//   * masked_kernel, for any other order, and for masks that are there: as shared_kernel, from
//     memory.
// All but the last and transposed_kernel take one launch and no workspace.
//
// Floor: the bytes of in and out, 4 an element of bf16, which is 1.07e12 elements a second at the
// 4.3 TB/s that an H200 copies, and leaves 31 issue slots an element. Predicted from sm_90's code
// by bench/kernel_report.py --model, for 16.8 million elements of bf16, slots and share of a copy's
// speed: at one digit of the threshold (p = 0.5) 11 slots and 0.96, at 15 (p = 0.1) 17 and 0.96,
// with a residual 20 and 0.93; under a channel mask 18 and 0.96. Elements that are not aligned to
// 16 bytes are read and written one by one, 8 at once: 0.60 and 0.50.
#pragma once

#include "draw_tile.cuh"
#include "dropout_tile.cuh"
#include "dropout_transposed.cuh"
#include "masked_dims.cuh"

namespace fused_dropout::dropout {
namespace {

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
    draw_groups_of_tile(
        rule, groups, lane, waiting[threadIdx.x / kWarpLanes],
        [&](int k) { return first + static_cast<uint64_t>(k); }, [&](int k) { return bits + k; });
  }
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
__global__ void __launch_bounds__(kElementThreads, kBlocks<kCount>)
    linear_kernel(MaskRule rule, RngSource rng, OneMap<Real<T>> map, Operands<T> tensors,
                  int warp_groups, int64_t first_group) {
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  GroupBits* const bits = &drawn[threadIdx.x / kWarpLanes * kWarpLanes];
  rule = seeded(rule, rng);
  for_each_tile<T, kCount>(tensors, map, warp_groups, bits->word,
                           [&](int64_t first, int count, int lane) {
                             draw<kByDigits>(rule, first_group + first / kGroupColumns,
                                             static_cast<int>(group_count(count)), lane, bits);
                           });
}

// Writes the bits of a tile's elements, which `bits` has from bit `origin` of the mask on.
FUSED_DROPOUT_DEVICE void gather_words(const uint32_t* bits, int64_t origin, const MaskedDims& dims,
                                       int64_t first, int count, int lane, uint32_t* words) {
#pragma unroll 1
  for (int k = lane * 32; k < count; k += kWarpLanes * 32) {
    words[k / 32] =
        bits_of_neighbours(bits, origin, dims, first + k, count - k < 32 ? count - k : 32);
  }
}

template <class T, int kCount, class Maps>
__global__ void __launch_bounds__(kElementThreads, kBlocks<kCount>)
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
__global__ void __launch_bounds__(kElementThreads, kBlocks<kCount>)
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

// ---- launches ---------------------------------------------------------------------------------

inline dim3 tile_blocks(int64_t elements, int warp_groups) {
  return tile_blocks(ceil_div(group_count(elements), warp_groups));
}

template <class T, bool kByDigits>
cudaError_t launch_linear_as(const MaskRule& rule, const RngSource& rng, const AffineMap& map,
                             const Operands<T>& tensors, int warp_groups, bool vectors, dim3 blocks,
                             cudaStream_t stream, int64_t first_group) {
  if (vectors) {
    return launch_kernel<linear_kernel<T, kVector<T>, kByDigits>>(
        blocks, dim3(kElementThreads), 0, stream, rule, rng, one_map<T>(map), tensors, warp_groups,
        first_group);
  }
  return launch_kernel<linear_kernel<T, 1, kByDigits>>(blocks, dim3(kElementThreads), 0, stream,
                                                       rule, rng, one_map<T>(map), tensors,
                                                       warp_groups, first_group);
}

// Whether 16 lanes can share the digits of a group, and gain by it.
inline bool shares_digits(const MaskRule& rule) {
  return rule.digits > 1 && rule.digits <= static_cast<uint32_t>(kDigitLanes);
}

// Elements in the order of their mask bits; the first one's is the first of group first_group.
template <class T>
cudaError_t launch_linear(const MaskRule& rule, const RngSource& rng, const AffineMap& map,
                          const Operands<T>& tensors, cudaStream_t stream,
                          int64_t first_group = 0) {
  if (tensors.count == 0) return cudaSuccess;
  const int warp_groups = groups_per_warp(group_count(tensors.count));
  const auto launch = warp_groups <= 2 && shares_digits(rule) ? launch_linear_as<T, true>
                                                              : launch_linear_as<T, false>;
  return launch(rule, rng, map, tensors, warp_groups, vectors_fit(tensors),
                tile_blocks(tensors.count, warp_groups), stream, first_group);
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
