// Drawing masks: groups of bits, the packed words of a matrix, and its bytes.
//
// Launch: a warp draws 32 groups of 128 columns at a time, or 96 where there are enough for all
// warps (draw_groups.cuh), in blocks of 256 threads, kMaxBlocks at most and a grid-stride loop
// beyond. The byte kernel draws a group in each thread; then its warps write the bytes of 32 groups
// together, in coalesced 16-byte stores.
//
// Floor: the bytes written, 16 a group packed and 128 as bytes. At 4 TB/s that is 4 ps and 32 ps.
// Predicted, not measured: packed 0.93 of it at one digit, and 0.12 at 16, where integer units are
// the limit: 717 issue slots a group. Rows of bytes whose length is not a multiple of 16 are stored
// byte by byte, at about half the speed.
#pragma once

#include <type_traits>

#include "divisor.cuh"
#include "draw_groups.cuh"

namespace fused_dropout {
namespace {

constexpr int kMaskThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 14;

FUSED_DROPOUT_DEVICE int64_t thread_in_grid() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

FUSED_DROPOUT_DEVICE int64_t threads_in_grid() { return int64_t{gridDim.x} * blockDim.x; }

// a / b for a >= 0 and b >= 1. A 64-bit division takes longer than drawing a group.
FUSED_DROPOUT_DEVICE int64_t quotient(int64_t a, int64_t b) {
  const bool is_short = (a | b) >> 32 == 0;
  return is_short ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

// Where a group of a matrix with `cols` columns stands.
struct GroupPlace {
  int64_t row;
  int64_t first_col;
  int columns;  // 128, or fewer at the end of a row
};

// `row_groups` is those of a row.
FUSED_DROPOUT_DEVICE GroupPlace place_of_group(int64_t group, int64_t cols,
                                               const Divisor& row_groups) {
  GroupPlace place;
  place.row = quotient(group, row_groups);
  place.first_col = (group - place.row * row_groups.value) * kGroupColumns;
  const int64_t left = cols - place.first_col;
  place.columns = static_cast<int>(left < kGroupColumns ? left : kGroupColumns);
  return place;
}

FUSED_DROPOUT_DEVICE void store_group(uint32_t* out, const GroupBits& bits) {
  *reinterpret_cast<uint4*>(out) =
      make_uint4(bits.word[0], bits.word[1], bits.word[2], bits.word[3]);
}

// Calls put(k, bits) for k = 0 .. count - 1, with the bits of group group_at(k). A lane draws
// kPerLane groups at a time.
template <int kPerLane, class GroupAt, class Put>
FUSED_DROPOUT_DEVICE void draw_all(const MaskRule& rule, int64_t count, GroupAt group_at, Put put) {
  constexpr int kTile = kWarpLanes * kPerLane;
  FUSED_DROPOUT_SHARED(WaitingGroups<kPerLane>, waiting, [kMaskThreads / kWarpLanes]);
  const int lane = threadIdx.x % kWarpLanes;
  const PhiloxKeys<uint32_t> keys = held_keys(rule);
  const int64_t warps = threads_in_grid() / kWarpLanes;
  for (int64_t tile = thread_in_grid() / kWarpLanes * kTile; tile < count; tile += warps * kTile) {
    const int mine = static_cast<int>(count - tile < kTile ? count - tile : kTile);
    draw_groups_of_warp<kPerLane>(
        rule, keys, mine, lane, waiting[threadIdx.x / kWarpLanes],
        [&](int k) { return group_at(tile + k); },
        [&](int k, const GroupBits& bits) { put(tile + k, bits); });
  }
}

// Groups first, first + stride, ...: `count` of them, 16 bytes each.
template <int kPerLane>
__global__ void __launch_bounds__(kMaskThreads)
    draw_groups_kernel(MaskRule rule, RngSource rng, uint64_t first, uint64_t stride, int64_t count,
                       uint32_t* out) {
  draw_all<kPerLane>(
      seeded(rule, rng), count,
      [&](int64_t k) { return first + static_cast<uint64_t>(k) * stride; },
      [&](int64_t k, const GroupBits& bits) { store_group(out + k * kGroupWords, bits); });
}

// Rows of ceil(cols / 32) words; the bits past the last column are 0.
template <int kPerLane>
__global__ void __launch_bounds__(kMaskThreads)
    draw_packed_kernel(MaskRule rule, RngSource rng, uint64_t first, int64_t count, int64_t cols,
                       Divisor row_groups, uint32_t* out) {
  const int64_t row_words = ceil_div(cols, 32);
  draw_all<kPerLane>(
      seeded(rule, rng), count, [&](int64_t k) { return first + static_cast<uint64_t>(k); },
      [&](int64_t k, const GroupBits& bits) {
        const GroupPlace place = place_of_group(k, cols, row_groups);
        uint32_t* const words = out + place.row * row_words + place.first_col / 32;
#pragma unroll
        for (int w = 0; w < kGroupWords; ++w) {
          const int left = place.columns - 32 * w;
          if (left > 0) words[w] = left < 32 ? bits.word[w] & ((1u << left) - 1) : bits.word[w];
        }
      });
}

// What a thread hands to its warp: a group and where its bytes go.
struct alignas(16) DrawnGroup {
  GroupBits bits;
  uint8_t* out;
  int columns;
};

// Four bits as four bytes of 0 or 1.
FUSED_DROPOUT_DEVICE uint32_t bytes_of_bits(uint32_t bits) {
  return (bits & 0xF) * 0x00204081u & 0x01010101u;
}

// The `Bytes` (1 or 16) lowest bits as bytes.
template <int Bytes>
FUSED_DROPOUT_DEVICE void store_bytes(uint8_t* out, uint32_t bits) {
  if constexpr (Bytes == 16) {
    *reinterpret_cast<uint4*>(out) =
        make_uint4(bytes_of_bits(bits), bytes_of_bits(bits >> 4), bytes_of_bits(bits >> 8),
                   bytes_of_bits(bits >> 12));
  } else {
    *out = static_cast<uint8_t>(bits & 1);
  }
}

// A [rows, cols] matrix of bytes, 1 where an element is kept.
template <int Bytes>
__global__ void __launch_bounds__(kMaskThreads)
    draw_bytes_kernel(MaskRule rule, RngSource rng, uint64_t first, int64_t count, int64_t cols,
                      Divisor row_groups, uint8_t* out) {
  constexpr int kStoresPerGroup = kGroupColumns / Bytes;
  FUSED_DROPOUT_SHARED(DrawnGroup, drawn, [kMaskThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  DrawnGroup* const warp = &drawn[threadIdx.x - lane];
  rule = seeded(rule, rng);
  const PhiloxKeys<uint32_t> keys = held_keys(rule);
  // `tile` is the warp's first group, so that all lanes leave the loop together.
  for (int64_t tile = thread_in_grid() - lane; tile < count; tile += threads_in_grid()) {
    const int64_t i = tile + lane;
    if (i < count) {
      const GroupPlace place = place_of_group(i, cols, row_groups);
      warp[lane].bits = keep_group(rule, keys, first + static_cast<uint64_t>(i));
      warp[lane].out = out + place.row * cols + place.first_col;
      warp[lane].columns = place.columns;
    } else {
      warp[lane].columns = 0;
    }
    __syncwarp();
    for (int k = lane; k < kWarpLanes * kStoresPerGroup; k += kWarpLanes) {
      const DrawnGroup& group = warp[k / kStoresPerGroup];
      const int col = k % kStoresPerGroup * Bytes;
      if (col < group.columns) {
        store_bytes<Bytes>(group.out + col, group.bits.word[col / 32] >> col % 32);
      }
    }
    __syncwarp();
  }
}

// ---- launches ---------------------------------------------------------------------------------

inline dim3 mask_blocks(int64_t threads, int64_t max_blocks) {
  const int64_t blocks = ceil_div(threads, kMaskThreads);
  return dim3(static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks));
}

constexpr int kManyPerLane = 3;  // with 4, some GPUs run out of registers
constexpr int64_t kManyGroups = 132 * 16 * kWarpLanes * kManyPerLane;  // fill an H200 with warps

// launch(constant, blocks), the constant being the groups that a lane draws at a time: one, or
// kManyPerLane where there are enough for that.
template <class Launch>
cudaError_t launch_by_groups(int64_t count, int64_t max_blocks, Launch launch) {
  if (count == 0) return cudaSuccess;
  if (count < kManyGroups) {
    return launch(std::integral_constant<int, 1>(), mask_blocks(count, max_blocks));
  }
  return launch(std::integral_constant<int, kManyPerLane>(),
                mask_blocks(ceil_div(count, kManyPerLane), max_blocks));
}

// Pointers are to device memory, `out` of groups is aligned to 16 bytes; the key and offset of
// `rule` are not used. An empty mask launches nothing.

inline cudaError_t launch_draw_groups(const MaskRule& rule, const RngSource& rng, uint64_t first,
                                      uint64_t stride, int64_t count, uint32_t* out,
                                      cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  return launch_by_groups(count, max_blocks, [&](auto per_lane, dim3 blocks) {
    return launch_kernel<draw_groups_kernel<decltype(per_lane)::value>>(
        blocks, dim3(kMaskThreads), 0, stream, rule, rng, first, stride, count, out);
  });
}

inline cudaError_t launch_draw_packed(const MaskRule& rule, const RngSource& rng, uint64_t first,
                                      int64_t rows, int64_t cols, uint32_t* out,
                                      cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  const int64_t groups = rows * group_count(cols);
  if (cols % kGroupColumns == 0) {  // every word of every group is part of the mask
    return launch_draw_groups(rule, rng, first, 1, groups, out, stream, max_blocks);
  }
  return launch_by_groups(groups, max_blocks, [&](auto per_lane, dim3 blocks) {
    return launch_kernel<draw_packed_kernel<decltype(per_lane)::value>>(
        blocks, dim3(kMaskThreads), 0, stream, rule, rng, first, groups, cols,
        make_divisor(group_count(cols)), out);
  });
}

inline cudaError_t launch_draw_bytes(const MaskRule& rule, const RngSource& rng, uint64_t first,
                                     int64_t rows, int64_t cols, uint8_t* out, cudaStream_t stream,
                                     int64_t max_blocks = kMaxBlocks) {
  const int64_t groups = rows * group_count(cols);
  if (groups == 0) return cudaSuccess;
  const dim3 blocks = mask_blocks(groups, max_blocks);
  const Divisor row_groups = make_divisor(group_count(cols));
  if (cols % 16 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0) {
    return launch_kernel<draw_bytes_kernel<16>>(blocks, dim3(kMaskThreads), 0, stream, rule, rng,
                                                first, groups, cols, row_groups, out);
  }
  return launch_kernel<draw_bytes_kernel<1>>(blocks, dim3(kMaskThreads), 0, stream, rule, rng,
                                             first, groups, cols, row_groups, out);
}

}  // namespace
}  // namespace fused_dropout
