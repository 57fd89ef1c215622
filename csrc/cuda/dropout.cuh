// Dropout: out = (kept ? scale * in + shift : fill) + residual, element by element.
//
// Where the elements lie in the order of their mask bits, one launch draws and applies: the lanes
// of a warp draw a group each, then the warp walks over the groups with 16-byte accesses, 32 x 16
// bytes at a time. A small tensor has too few groups for that; there 16 lanes share the digits of a
// group. Everything else (shared dimensions, channels_last, transposed inputs) draws the packed
// mask first and reads it in the order of memory.
//
// Floor: the bytes of in and out, 4 an element of bf16, which is 1.07e12 elements a second at the
// 4.3 TB/s that an H200 copies. Prediction: a lane's share of a group is one Philox call a digit
// (100 issue slots) for 128 elements, and about 3 slots an element for bits, conversion and
// multiplication, of the 14 that the floor leaves; so memory is the limit up to 16 digits. The
// packed path reads 1/8 byte more an element.
#pragma once

#include "elements.cuh"
#include "mask.cuh"
#include "masked_dims.cuh"
#include "packed_bits.cuh"

namespace fused_dropout::dropout {

// `residual` may be null; `out` may be `in`.
template <class T>
struct Operands {
  const T* in;
  const T* residual;
  T* out;
  int64_t count;
};

namespace {

// Of a multiprocessor, at least: without a number ptxas aims at 6, and spills.
constexpr int kBlocks = 4;
constexpr int kTileRows = 32;  // rows that a thread of transposed_kernel walks over

template <class S>
struct AffineReals {
  S scale, shift, fill;
};

template <class T>
AffineReals<Real<T>> reals_of(const AffineMap& map) {
  return {static_cast<Real<T>>(map.scale), static_cast<Real<T>>(map.shift),
          static_cast<Real<T>>(map.fill)};
}

// One map for all elements.
template <class S>
struct OneMap {
  AffineReals<S> map;
  FUSED_DROPOUT_DEVICE AffineReals<S> of_element(int64_t) const { return map; }
  bool allows_vectors_of(int) const { return true; }
};

// Element k is multiplied by scale[k / run], in device memory, if it is kept.
template <class S>
struct ScaleOfRun {
  const double* scale;
  Divisor run;
  FUSED_DROPOUT_DEVICE AffineReals<S> of_element(int64_t k) const {
    return {static_cast<S>(scale[quotient(k, run)]), 0, 0};
  }
  bool allows_vectors_of(int count) const { return run.value % count == 0; }
};

// Whatever stands in x, a NaN too, does not reach the result of a dropped element. Adding a shift
// of 0 would turn -0 into 0.
template <class S>
FUSED_DROPOUT_DEVICE S mapped(const AffineReals<S>& map, S x, bool kept) {
  const S y = map.shift != 0 ? fma(map.scale, x, map.shift) : map.scale * x;
  return kept ? y : map.fill;
}

// Elements k .. k + kCount - 1, whose keep bits are the lowest ones of `bits`.
template <class T, int kCount>
FUSED_DROPOUT_DEVICE void apply_neighbours(const Operands<T>& tensors,
                                           const AffineReals<Real<T>>& map, int64_t k,
                                           uint32_t bits) {
  Real<T> x[kCount];
  load_neighbours<T, kCount>(tensors.in + k, x);
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = mapped(map, x[i], bits >> i & 1);
  if (tensors.residual != nullptr) {
    Real<T> r[kCount];
    load_neighbours<T, kCount>(tensors.residual + k, r);
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] += r[i];
  }
  store_neighbours<T, kCount>(x, tensors.out + k);
}

// A warp's `groups` groups of bits, drawn by as many lanes.
FUSED_DROPOUT_DEVICE void draw_by_groups(const MaskRule& rule, int64_t first_group, int groups,
                                         int lane, GroupBits* bits) {
  if (lane < groups) {
    bits[lane] = keep_group(rule, keys_of(rule), static_cast<uint64_t>(first_group + lane));
  }
}

// The same by 16 lanes for each group, for rules of at most 16 digits.
FUSED_DROPOUT_DEVICE void draw_by_digits(const MaskRule& rule, int64_t first_group, int groups,
                                         int lane, GroupBits* bits) {
  for (int g = 0; g < groups; g += kWarpLanes / kDigitLanes) {
    const int mine = g + lane / kDigitLanes;
    const GroupBits kept = keep_group_by_lanes(
        rule, keys_of(rule), static_cast<uint64_t>(first_group + mine), lane % kDigitLanes);
    if (lane % kDigitLanes == 0 && mine < groups) bits[mine] = kept;
  }
}

// Elements in the order of their mask bits; a warp takes `warp_groups` <= 32 groups at a time.
// kByDigits is no argument: registers would have to be saved around the shuffles of a branch.
template <class T, int kCount, bool kByDigits>
__global__ void __launch_bounds__(kElementThreads, kBlocks)
    linear_kernel(MaskRule rule, RngSource rng, AffineReals<Real<T>> map, Operands<T> tensors,
                  int warp_groups) {
  constexpr int kPerGroup = kGroupColumns / kCount;  // accesses
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  GroupBits* const bits = &drawn[threadIdx.x - lane];
  rule = seeded(rule, rng);
  const int64_t groups = group_count(tensors.count);
  const int64_t warps = threads_in_grid() / kWarpLanes;
  for (int64_t first = thread_in_grid() / kWarpLanes * warp_groups; first < groups;
       first += warps * warp_groups) {
    const int mine = static_cast<int>(groups - first < warp_groups ? groups - first : warp_groups);
    if constexpr (kByDigits) {
      draw_by_digits(rule, first, mine, lane, bits);
    } else {
      draw_by_groups(rule, first, mine, lane, bits);
    }
    __syncwarp();
    for (int k = lane; k < mine * kPerGroup; k += kWarpLanes) {
      const int in_group = k % kPerGroup * kCount;
      const int64_t element = first * kGroupColumns + int64_t{k} * kCount;
      const uint32_t word = bits[k / kPerGroup].word[in_group / 32] >> (in_group % 32);
      if (element + kCount <= tensors.count) {
        apply_neighbours<T, kCount>(tensors, map, element, word);
      } else {
#pragma unroll 1
        for (int i = 0; element + i < tensors.count; ++i) {
          apply_neighbours<T, 1>(tensors, map, element + i, word >> i);
        }
      }
    }
    __syncwarp();
  }
}

// The bits of `count` < 32 elements of the last dimension.
FUSED_DROPOUT_DEVICE uint32_t bits_of_row(const uint32_t* bits, int64_t first, int64_t stride,
                                          int count) {
  const uint32_t ones = (1u << count) - 1;
  if (stride == 0) return bit_at(bits, first) != 0 ? ones : 0;
  if (stride == 1) return bits_from(bits, first, count) & ones;
  uint32_t word = 0;
  for (int i = 0; i < count; ++i) word |= bit_at(bits, first + i * stride) << i;
  return word;
}

// Elements in any order of their mask bits, which have been drawn. A thread takes kCount
// neighbours.
template <class T, int kCount, class Maps>
__global__ void __launch_bounds__(kElementThreads, kBlocks)
    masked_kernel(const uint32_t* bits, MaskedDims dims, Maps maps, Operands<T> tensors) {
  const int64_t stride = dims.mask_stride[dims.count - 1];
  for (int64_t first = thread_in_grid() * kCount; first < tensors.count;
       first += threads_in_grid() * kCount) {
    const int64_t left = tensors.count - first;
    const int count = left < kCount ? static_cast<int>(left) : kCount;
    uint32_t word = 0;
    for (int i = 0; i < count;) {
      const ElementPlace place = place_of_element(dims, first + i);
      const int n = place.left < count - i ? static_cast<int>(place.left) : count - i;
      word |= bits_of_row(bits, place.bit, stride, n) << i;
      i += n;
    }
    const AffineReals<Real<T>> map = maps.of_element(first);
    if (count == kCount) {
      apply_neighbours<T, kCount>(tensors, map, first, word);
    } else {
#pragma unroll 1
      for (int i = 0; i < count; ++i) apply_neighbours<T, 1>(tensors, map, first + i, word >> i);
    }
  }
}

// The last dimension's bits are far apart and those of the one before it consecutive, as in
// channels_last. A thread stays in its column: it reads the bits of kTileRows rows at once, and a
// warp reads 32 neighbours of each row.
template <class T, class Maps>
__global__ void __launch_bounds__(kElementThreads, kBlocks)
    transposed_kernel(const uint32_t* bits, MaskedDims dims, Divisor tiles, int64_t columns,
                      Maps maps, Operands<T> tensors) {
  const int64_t rows = dims.size[dims.count - 2].value;
  const int64_t cols = dims.size[dims.count - 1].value;
  for (int64_t k = thread_in_grid(); k < columns; k += threads_in_grid()) {
    const int64_t tile_in_all = quotient(k, dims.size[dims.count - 1]);
    const int64_t col = k - tile_in_all * cols;
    const int64_t plane = quotient(tile_in_all, tiles);
    const int64_t first_row = (tile_in_all - plane * tiles.value) * kTileRows;
    const int64_t left = rows - first_row;
    const int count = left < kTileRows ? static_cast<int>(left) : kTileRows;
    const int64_t element = (plane * rows + first_row) * cols + col;
    const uint32_t word = bits_from(bits, place_of_element(dims, element).bit, count);
    const AffineReals<Real<T>> map = maps.of_element(element);
    for (int r = 0; r < count; ++r) {
      apply_neighbours<T, 1>(tensors, map, element + r * cols, word >> r);
    }
  }
}

// ---- launches ---------------------------------------------------------------------------------

template <class T>
bool vectors_fit(const Operands<T>& tensors) {
  return is_aligned(tensors.in, 16) && is_aligned(tensors.residual, 16) &&
         is_aligned(tensors.out, 16);
}

template <class T, bool kByDigits>
cudaError_t launch_linear_as(const MaskRule& rule, const RngSource& rng, const AffineMap& map,
                             const Operands<T>& tensors, int warp_groups, bool vectors, dim3 blocks,
                             cudaStream_t stream) {
  if (vectors) {
    return launch_kernel<linear_kernel<T, kVector<T>, kByDigits>>(
        blocks, dim3(kElementThreads), 0, stream, rule, rng, reals_of<T>(map), tensors,
        warp_groups);
  }
  return launch_kernel<linear_kernel<T, 1, kByDigits>>(
      blocks, dim3(kElementThreads), 0, stream, rule, rng, reals_of<T>(map), tensors, warp_groups);
}

// Elements in the order of their mask bits.
template <class T>
cudaError_t launch_linear(const MaskRule& rule, const RngSource& rng, const AffineMap& map,
                          const Operands<T>& tensors, cudaStream_t stream) {
  if (tensors.count == 0) return cudaSuccess;
  const int64_t groups = group_count(tensors.count);
  const int warp_groups = groups_per_warp(groups);
  const bool by_digits =
      warp_groups <= 2 && rule.digits > 1 && rule.digits <= static_cast<uint32_t>(kDigitLanes);
  const dim3 blocks = element_blocks(ceil_div(groups, warp_groups) * kWarpLanes);
  const auto launch = by_digits ? launch_linear_as<T, true> : launch_linear_as<T, false>;
  return launch(rule, rng, map, tensors, warp_groups, vectors_fit(tensors), blocks, stream);
}

// Elements in any order of their mask bits, which `bits` holds.
template <class T, class Maps>
cudaError_t launch_masked(const uint32_t* bits, const MaskedDims& dims, const Maps& maps,
                          const Operands<T>& tensors, cudaStream_t stream) {
  if (tensors.count == 0) return cudaSuccess;
  const int last = dims.count - 1;
  if (dims.mask_stride[last] > 1 && last > 0 && dims.mask_stride[last - 1] == 1) {
    const int64_t rows = dims.size[last - 1].value;
    const int64_t tiles = ceil_div(rows, kTileRows);
    const int64_t columns = tensors.count / rows * tiles;
    return launch_kernel<transposed_kernel<T, Maps>>(element_blocks(columns), dim3(kElementThreads),
                                                     0, stream, bits, dims, make_divisor(tiles),
                                                     columns, maps, tensors);
  }
  if (vectors_fit(tensors) && maps.allows_vectors_of(kVector<T>)) {
    return launch_kernel<masked_kernel<T, kVector<T>, Maps>>(
        element_blocks(ceil_div(tensors.count, kVector<T>)), dim3(kElementThreads), 0, stream, bits,
        dims, maps, tensors);
  }
  return launch_kernel<masked_kernel<T, 1, Maps>>(
      element_blocks(tensors.count), dim3(kElementThreads), 0, stream, bits, dims, maps, tensors);
}

}  // namespace
}  // namespace fused_dropout::dropout
