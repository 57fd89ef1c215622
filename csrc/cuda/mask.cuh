// Drawing masks: groups of bits, the packed words of a matrix, and its bytes.
//
// Launch: one thread per group of 128 columns in blocks of 256, kMaxBlocks at most and a
// grid-stride loop beyond. A thread draws its group alone (common/mask.h). Only the byte kernel
// shares what was drawn: each warp writes the bytes of its 32 groups together, in coalesced 16-byte
// stores.
//
// Floor: the bytes written, 16 a group packed and 128 as bytes. At 4 TB/s that is 4 ps and 32 ps.
// Prediction, from the instructions in sm_90's code (a wide multiplication counted twice): a warp
// issues 100 a digit and 70 a group besides, and the 528 schedulers of an H200 at 1.75 GHz issue
// 924 per ns. So p = 0.5 takes 6 ps a group packed, where the integer units limit it, and 32 ps as
// bytes, where memory does; 16 digits take 56 ps packed and 66 ps as bytes. Rows of bytes whose
// length is not a multiple of 16 are stored byte by byte, at about half the speed.
#pragma once

#include "../common/mask.h"
#include "compat.h"

namespace fused_dropout {

// Where a kernel finds its seed and offset: by value, which no launch and no copy has to bring, or
// in an rng_state on the device, where a CUDA graph finds fresh ones at every replay.
struct RngSource {
  const int64_t* device_state;  // seed and offset; null: the two below
  uint64_t seed;
  uint64_t offset;
};

// `device_state` is the memory of an int64[2] tensor on the device.
inline RngSource rng_from_state(const int64_t* device_state) { return {device_state, 0, 0}; }

namespace {

constexpr int kWarpLanes = 32;
constexpr int kMaskThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 14;

FUSED_DROPOUT_DEVICE int64_t thread_in_grid() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

FUSED_DROPOUT_DEVICE int64_t threads_in_grid() { return int64_t{gridDim.x} * blockDim.x; }

// `rule` with the seed and offset of `rng` in place of those that the host gave it.
FUSED_DROPOUT_DEVICE MaskRule seeded(MaskRule rule, const RngSource& rng) {
  uint64_t seed = rng.seed;
  uint64_t offset = rng.offset;
  if (rng.device_state) {
    seed = static_cast<uint64_t>(rng.device_state[0]);
    offset = static_cast<uint64_t>(rng.device_state[1]);
  }
  rule.key[0] = static_cast<uint32_t>(seed);
  rule.key[1] = static_cast<uint32_t>(seed >> 32);
  rule.offset[0] = static_cast<uint32_t>(offset);
  rule.offset[1] = static_cast<uint32_t>(offset >> 32);
  return rule;
}

// a / b for a >= 0 and b >= 1. A 64-bit division takes longer than drawing a group.
FUSED_DROPOUT_DEVICE int64_t quotient(int64_t a, int64_t b) {
  const bool is_short = (a | b) >> 32 == 0;
  return is_short ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

constexpr int kDigitLanes = 16;

FUSED_DROPOUT_DEVICE GroupBits shuffled(const GroupBits& bits, int lane_mask) {
  GroupBits other;
#pragma unroll
  for (int w = 0; w < kGroupWords; ++w) {
    other.word[w] = __shfl_xor_sync(~0u, bits.word[w], lane_mask);
  }
  return other;
}

// keep_group by kDigitLanes neighbouring lanes, of which `digit` draws one digit; all get the
// result. For a few groups, where one lane after the other would wait for 16 Philox calls in a row.
// The rule has 1 to kDigitLanes digits, and the whole warp takes part.
FUSED_DROPOUT_DEVICE GroupBits keep_group_by_lanes(const MaskRule& rule, uint64_t group,
                                                   int digit) {
  // What a run of digits says: already below T's, and still equal to them.
  GroupBits below = group_of(0u);
  GroupBits equal = group_of(~0u);
  if (static_cast<uint32_t>(digit) < rule.digits) {
    const uint32_t s = static_cast<uint32_t>(digit);
    const GroupBits drawn = group_digit(rule, keys_of(rule), group, s);
    if (threshold_digit(rule, s)) {
      below = and_not(equal, drawn);
      equal = drawn;
    } else {
      equal = and_not(equal, drawn);
    }
  }
  // Two neighbouring runs make one: the second counts where the first left it open.
#pragma unroll
  for (int run = 1; run < kDigitLanes; run *= 2) {
    const GroupBits other_below = shuffled(below, run);
    const GroupBits other_equal = shuffled(equal, run);
    const bool is_first = (digit & run) == 0;
    below = is_first ? below | (equal & other_below) : other_below | (other_equal & below);
    equal = equal & other_equal;
  }
  return below;
}

// Where a group of a matrix with `cols` columns stands.
struct GroupPlace {
  int64_t row;
  int64_t first_col;
  int columns;  // 128, or fewer at the end of a row
};

FUSED_DROPOUT_DEVICE GroupPlace place_of_group(int64_t group, int64_t cols) {
  const int64_t per_row = group_count(cols);
  GroupPlace place;
  place.row = quotient(group, per_row);
  place.first_col = (group - place.row * per_row) * kGroupColumns;
  const int64_t left = cols - place.first_col;
  place.columns = static_cast<int>(left < kGroupColumns ? left : kGroupColumns);
  return place;
}

FUSED_DROPOUT_DEVICE void store_group(uint32_t* out, const GroupBits& bits) {
  *reinterpret_cast<uint4*>(out) =
      make_uint4(bits.word[0], bits.word[1], bits.word[2], bits.word[3]);
}

// Groups first, first + stride, ...: `count` of them, 16 bytes each.
__global__ void __launch_bounds__(kMaskThreads)
    draw_groups_kernel(MaskRule rule, RngSource rng, uint64_t first, uint64_t stride, int64_t count,
                       uint32_t* out) {
  rule = seeded(rule, rng);
  for (int64_t i = thread_in_grid(); i < count; i += threads_in_grid()) {
    store_group(out + i * kGroupWords, keep_group(rule, first + static_cast<uint64_t>(i) * stride));
  }
}

// Rows of ceil(cols / 32) words; the bits past the last column are 0.
__global__ void __launch_bounds__(kMaskThreads)
    draw_packed_kernel(MaskRule rule, RngSource rng, uint64_t first, int64_t rows, int64_t cols,
                       uint32_t* out) {
  rule = seeded(rule, rng);
  const int64_t row_words = (cols + 31) / 32;
  const int64_t count = rows * group_count(cols);
  for (int64_t i = thread_in_grid(); i < count; i += threads_in_grid()) {
    const GroupPlace place = place_of_group(i, cols);
    const GroupBits bits = keep_group(rule, first + static_cast<uint64_t>(i));
    uint32_t* const words = out + place.row * row_words + place.first_col / 32;
#pragma unroll
    for (int w = 0; w < kGroupWords; ++w) {
      const int left = place.columns - 32 * w;
      if (left > 0) words[w] = left < 32 ? bits.word[w] & ((1u << left) - 1) : bits.word[w];
    }
  }
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
    draw_bytes_kernel(MaskRule rule, RngSource rng, uint64_t first, int64_t rows, int64_t cols,
                      uint8_t* out) {
  constexpr int kStoresPerGroup = kGroupColumns / Bytes;
  FUSED_DROPOUT_SHARED(DrawnGroup, drawn, [kMaskThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  DrawnGroup* const warp = &drawn[threadIdx.x - lane];
  rule = seeded(rule, rng);
  const int64_t count = rows * group_count(cols);
  // `tile` is the warp's first group, so that all lanes leave the loop together.
  for (int64_t tile = thread_in_grid() - lane; tile < count; tile += threads_in_grid()) {
    const int64_t i = tile + lane;
    if (i < count) {
      const GroupPlace place = place_of_group(i, cols);
      warp[lane].bits = keep_group(rule, first + static_cast<uint64_t>(i));
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

inline dim3 mask_blocks(int64_t groups, int64_t max_blocks) {
  const int64_t blocks = (groups + kMaskThreads - 1) / kMaskThreads;
  return dim3(static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks));
}

// The launches. Pointers are to device memory, `out` of groups is aligned to 16 bytes; the key and
// offset of `rule` are not used. An empty mask launches nothing.

inline cudaError_t launch_draw_groups(const MaskRule& rule, const RngSource& rng, uint64_t first,
                                      uint64_t stride, int64_t count, uint32_t* out,
                                      cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  if (count == 0) return cudaSuccess;
  return launch_kernel<draw_groups_kernel>(mask_blocks(count, max_blocks), dim3(kMaskThreads), 0,
                                           stream, rule, rng, first, stride, count, out);
}

inline cudaError_t launch_draw_packed(const MaskRule& rule, const RngSource& rng, uint64_t first,
                                      int64_t rows, int64_t cols, uint32_t* out,
                                      cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  const int64_t groups = rows * group_count(cols);
  if (cols % kGroupColumns == 0) {  // every word of every group is part of the mask
    return launch_draw_groups(rule, rng, first, 1, groups, out, stream, max_blocks);
  }
  if (groups == 0) return cudaSuccess;
  return launch_kernel<draw_packed_kernel>(mask_blocks(groups, max_blocks), dim3(kMaskThreads), 0,
                                           stream, rule, rng, first, rows, cols, out);
}

inline cudaError_t launch_draw_bytes(const MaskRule& rule, const RngSource& rng, uint64_t first,
                                     int64_t rows, int64_t cols, uint8_t* out, cudaStream_t stream,
                                     int64_t max_blocks = kMaxBlocks) {
  const int64_t groups = rows * group_count(cols);
  if (groups == 0) return cudaSuccess;
  const dim3 blocks = mask_blocks(groups, max_blocks);
  if (cols % 16 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0) {
    return launch_kernel<draw_bytes_kernel<16>>(blocks, dim3(kMaskThreads), 0, stream, rule, rng,
                                                first, rows, cols, out);
  }
  return launch_kernel<draw_bytes_kernel<1>>(blocks, dim3(kMaskThreads), 0, stream, rule, rng,
                                             first, rows, cols, out);
}

}  // namespace
}  // namespace fused_dropout
