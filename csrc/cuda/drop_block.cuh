// DropBlock's masks: from the packed keep bits of seeds to those of elements, and the factors that
// make up for what is dropped.
//
// Launch: one thread for 32 elements, a word of the result, which it puts together from the rows
// that the word has a part of. It joins the seeds of the up to `block` rows above word by word, and
// spreads what is dropped along the row by shifts. A third dimension takes a second launch, for
// which a whole slice is a row. The last block to finish turns the counts into factors, so that
// nothing waits for the host.
//
// Floor: the bits, 1/8 byte an element read and written, in cache. Prediction: about 20
// instructions a row of seeds and 60 a part of a row besides; a block of 7 on rows of 56 takes 340
// a word, 10 an element: 2.3 us for 32 x 64 x 56 x 56 elements on an H200, of which drawing takes 1
// and dropout itself 12 in float.
#pragma once

#include "../common/drop_block.h"
#include "divisor.cuh"
#include "elements.cuh"
#include "mask.cuh"
#include "packed_bits.cuh"

namespace fused_dropout::drop_block {

// How many elements are kept in each of `runs` stretches of the mask. `kept` has one number more,
// of blocks that have finished; all start at 0. Without runs nothing is counted.
struct RunCounts {
  int64_t runs;
  Divisor bits;  // of a run
  double eps;
  unsigned long long* kept;
  double* scale;  // the result: bits / (kept + eps)
};

inline RunCounts no_counts() { return {0, make_divisor(1), 0, nullptr, nullptr}; }

namespace {

constexpr int kDilateThreads = 256;
constexpr int kDilateWarps = kDilateThreads / kWarpLanes;

// Maps of two dimensions.
struct FlatMaps {
  int64_t bits;  // of all maps
  Divisor rows;
  Divisor cols;
  int64_t block_rows;
  int64_t block_cols;
};

inline FlatMaps make_flat_maps(int64_t count, int64_t rows, int64_t cols, int64_t block_rows,
                               int64_t block_cols) {
  return {count * rows * cols, make_divisor(rows), make_divisor(cols), block_rows, block_cols};
}

FUSED_DROPOUT_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FUSED_DROPOUT_DEVICE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// count <= 32
FUSED_DROPOUT_DEVICE uint32_t low_bits(int64_t count) {
  return count >= 32 ? ~0u : (1u << static_cast<int>(count)) - 1;
}

// Bit i of the result is set if one of the `reach` <= 32 bits up to i, or from i on, is.
FUSED_DROPOUT_DEVICE uint32_t spread_up(uint32_t bits, int reach) {
  for (int covered = 1; covered < reach;) {
    const int more = covered < reach - covered ? covered : reach - covered;
    bits |= bits << more;
    covered += more;
  }
  return bits;
}
FUSED_DROPOUT_DEVICE uint32_t spread_down(uint32_t bits) {
#pragma unroll
  for (int shift = 1; shift < 32; shift *= 2) bits |= bits >> shift;
  return bits;
}

// Neighbouring seeds of a row.
struct SeedRun {
  int64_t first;
  int64_t count;
};

FUSED_DROPOUT_DEVICE SeedRun seeds_between(int64_t first, int64_t end) {
  return {first, larger(end - first, 0)};
}

FUSED_DROPOUT_DEVICE bool all_kept(const uint32_t* seeds, int64_t first, int64_t count) {
  for (int64_t done = 0; done < count; done += 32) {
    const int64_t piece = smaller(count - done, 32);
    if (~bits_from(seeds, first + done, piece) & low_bits(piece)) return false;
  }
  return true;
}

// The keep bits of `count` <= 32 elements of a row, from column `col` on.
FUSED_DROPOUT_DEVICE uint32_t kept_of_row(const uint32_t* seeds, const FlatMaps& maps, int64_t map,
                                          int64_t row, int64_t col, int count) {
  const int64_t seed_rows = maps.rows.value - maps.block_rows + 1;
  const int64_t seed_cols = maps.cols.value - maps.block_cols + 1;
  // The seeds of the elements' own columns drop elements to their right; those of the first 32
  // columns that reach here drop some from the left on; those between the two drop all.
  const int64_t reach = col - maps.block_cols + 1;
  const SeedRun own = seeds_between(col, smaller(col + count, seed_cols));
  const SeedRun far = seeds_between(larger(reach, 0), smaller(smaller(reach + 32, col), seed_cols));
  const SeedRun between = seeds_between(larger(reach + 32, 0), smaller(col, seed_cols));

  uint32_t own_kept = ~0u;
  uint32_t far_kept = ~0u;
  bool between_kept = true;
  const int64_t last_row = smaller(row, seed_rows - 1);
  int64_t r = larger(row - maps.block_rows + 1, 0);
  for (int64_t base = (map * seed_rows + r) * seed_cols; r <= last_row; ++r, base += seed_cols) {
    if (own.count > 0) own_kept &= bits_from(seeds, base + own.first, own.count);
    if (far.count > 0) far_kept &= bits_from(seeds, base + far.first, far.count);
    if (between.count > 0) {
      between_kept = between_kept && all_kept(seeds, base + between.first, between.count);
    }
  }
  if (!between_kept) return 0;
  uint32_t dropped =
      spread_up(~own_kept & low_bits(own.count), static_cast<int>(smaller(maps.block_cols, 32)));
  if (far.count > 0) {
    dropped |=
        spread_down((~far_kept & low_bits(far.count)) << static_cast<int>(far.first - reach));
  }
  return ~dropped & low_bits(count);
}

// The keep bits of `count` <= 32 elements from `first` on.
FUSED_DROPOUT_DEVICE uint32_t kept_of_word(const uint32_t* seeds, const FlatMaps& maps,
                                           int64_t first, int count) {
  const int64_t row_of_all = quotient(first, maps.cols);
  int64_t col = first - row_of_all * maps.cols.value;
  int64_t map = quotient(row_of_all, maps.rows);
  int64_t row = row_of_all - map * maps.rows.value;
  uint32_t kept = 0;
  for (int done = 0; done < count;) {
    const int part = static_cast<int>(smaller(maps.cols.value - col, count - done));
    kept |= kept_of_row(seeds, maps, map, row, col, part) << done;
    done += part;
    col = 0;
    if (++row == maps.rows.value) {
      row = 0;
      ++map;
    }
  }
  return kept;
}

// Adds the kept among the 32 bits from `first` on, `count` of them at most, to their runs.
FUSED_DROPOUT_DEVICE void count_word(const RunCounts& counts, uint32_t kept, int64_t first,
                                     int count) {
  for (int done = 0; done < count;) {
    const int64_t run = quotient(first + done, counts.bits);
    const int64_t left = (run + 1) * counts.bits.value - first - done;
    const int part = static_cast<int>(smaller(left, count - done));
    const int sum = __popc(kept >> done & low_bits(part));
    atomicAdd(counts.kept + run, static_cast<unsigned long long>(sum));
    done += part;
  }
}

// The same for a block whose bits are all of one run. All its threads take part.
FUSED_DROPOUT_DEVICE void count_block(const RunCounts& counts, uint32_t kept, int64_t run) {
  FUSED_DROPOUT_SHARED(int, sums, [kDilateWarps]);
  int sum = __popc(kept);
#pragma unroll
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (threadIdx.x % kWarpLanes == 0) sums[threadIdx.x / kWarpLanes] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    int all = 0;
#pragma unroll
    for (int warp = 0; warp < kDilateWarps; ++warp) all += sums[warp];
    atomicAdd(counts.kept + run, static_cast<unsigned long long>(all));
  }
  __syncthreads();
}

// Whether this block is the last of the grid to come here. All its threads ask; those of the last
// one see what the others have counted.
FUSED_DROPOUT_DEVICE bool is_last_block(unsigned long long* finished) {
  FUSED_DROPOUT_SHARED(int, is_last, [1]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last[0] = atomicAdd(finished, 1ull) == gridDim.x - 1ull;
    __threadfence();
  }
  __syncthreads();
  return is_last[0] != 0;
}

__global__ void __launch_bounds__(kDilateThreads)
    dilate_kernel(const uint32_t* seeds, FlatMaps maps, RunCounts counts, int64_t words,
                  uint32_t* out) {
  const int64_t step = int64_t{gridDim.x} * kDilateThreads;
  for (int64_t tile = int64_t{blockIdx.x} * kDilateThreads; tile < words; tile += step) {
    const int64_t word = tile + threadIdx.x;
    const int64_t first = word * 32;
    const int count = static_cast<int>(larger(smaller(maps.bits - first, 32), 0));
    const uint32_t kept = count > 0 ? kept_of_word(seeds, maps, first, count) : 0;
    if (word < words) out[word] = kept;
    if (counts.runs == 0) continue;
    const int64_t tile_end = smaller(maps.bits, (tile + kDilateThreads) * 32);
    const int64_t run = quotient(tile * 32, counts.bits);
    if (tile_end <= (run + 1) * counts.bits.value) {
      count_block(counts, kept, smaller(run, counts.runs - 1));  // past the end there is 0 to add
    } else {
      count_word(counts, kept, first, count);
    }
  }
  if (counts.runs == 0 || !is_last_block(counts.kept + counts.runs)) return;
  for (int64_t run = threadIdx.x; run < counts.runs; run += kDilateThreads) {
    const double kept = static_cast<double>(__ldcg(counts.kept + run));
    counts.scale[run] = static_cast<double>(counts.bits.value) / (kept + counts.eps);
  }
}

inline cudaError_t launch_dilate(const uint32_t* seeds, const FlatMaps& maps,
                                 const RunCounts& counts, int64_t words, uint32_t* out,
                                 cudaStream_t stream, int64_t max_blocks) {
  const int64_t blocks = ceil_div(words, kDilateThreads);
  const dim3 grid(static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks));
  return launch_kernel<dilate_kernel>(grid, dim3(kDilateThreads), 0, stream, seeds, maps, counts,
                                      words, out);
}

// Words of scratch that launch_mask needs: the bits after the first of its two passes.
inline int64_t mask_scratch(const BlockMaps& maps) {
  if (maps.block[0] == 1) return 0;
  return ceil_div(maps.count * seeds_along(maps, 0) * maps.size[1] * maps.size[2], 32);
}

// The keep bits of all elements, out of those of all seeds; the bits of the `words` words past the
// elements become 0. There is at least one element.
inline cudaError_t launch_mask(const BlockMaps& maps, const uint32_t* seeds,
                               const RunCounts& counts, uint32_t* scratch, int64_t words,
                               uint32_t* out, cudaStream_t stream,
                               int64_t max_blocks = kMaxBlocks) {
  const int64_t slices = maps.count * seeds_along(maps, 0);
  const FlatMaps flat =
      make_flat_maps(slices, maps.size[1], maps.size[2], maps.block[1], maps.block[2]);
  if (maps.block[0] == 1) return launch_dilate(seeds, flat, counts, words, out, stream, max_blocks);
  const cudaError_t error =
      launch_dilate(seeds, flat, no_counts(), mask_scratch(maps), scratch, stream, max_blocks);
  if (error != cudaSuccess) return error;
  const FlatMaps deep =
      make_flat_maps(maps.count, maps.size[0], maps.size[1] * maps.size[2], maps.block[0], 1);
  return launch_dilate(scratch, deep, counts, words, out, stream, max_blocks);
}

}  // namespace
}  // namespace fused_dropout::drop_block
