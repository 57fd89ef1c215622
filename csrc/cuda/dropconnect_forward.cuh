// The output of a DropConnect layer (see dropconnect.cuh): tiles of 64 rows x 64 output features.
//
// A thread has 4 x 4 pairs of a row and an output feature. For each group of 128 columns it draws
// the masks of its own pairs, or reads them, and keeps them in shared memory that only it looks at:
// no barrier stands between drawing and multiplying, and the warps of a multiprocessor do both at
// the same time. The values come in stages of 128 bytes a row, one of which is on its way while the
// block works on the other.
#pragma once

#include "dropconnect_bias.cuh"

namespace fused_dropout::dropconnect {
namespace {

constexpr int kForwardThreads = 256;
constexpr int kForwardRows = 64;
constexpr int kForwardOuts = 64;
constexpr int kSide = 16;      // threads along the rows, and along the output features
constexpr int kStageRuns = 8;  // of a row
constexpr int kStages = 2;
constexpr int kByte = 8;  // columns whose bits one R2P turns into predicates
static_assert(kSide * kThreadTile == kForwardRows && kSide * kThreadTile == kForwardOuts, "tile");

template <class R>
constexpr int kForwardBlocks = sizeof(R) == 4 ? 2 : 1;  // of a multiprocessor, at least

template <class R>
constexpr int kStageColumns = kStageRuns * kRun<R>;

// Of a stage: eight neighbouring rows have their runs in other banks.
template <class R>
struct StageLayout {
  static constexpr int kStep = kForwardThreads * kRun<R>;  // to the same run of a row 32 rows on
  FUSED_DROPOUT_DEVICE static int place(int row, int run) {
    return (row * kStageRuns + (run ^ row % kStageRuns)) * kRun<R>;
  }
};

template <class R>
struct ForwardShared {
  R input[kStages][kForwardRows * kStageColumns<R>];
  R weight[kStages][kForwardOuts * kStageColumns<R>];
  PhiloxKeys<uint32_t> keys;
  uint32_t offset[2];
  uint4 mask[kGroupWords][kThreadTile][kForwardThreads];  // of a thread's 4 output features
};

// Where a thread stands in the tile: its pairs are rows row + 16 k and output features out + 16 k.
// Their runs of a stage start at these bytes, exclusive-or 16 times the run.
//
// Lanes 2 k and 2 k + 1 have the same output features, lanes that differ by 2 the same rows: then
// shared memory gives 16 bytes to each in two steps in place of four.
struct PairPlace {
  int row;
  int out;
  uint32_t input_bytes;
  uint32_t weight_bytes;
};

FUSED_DROPOUT_DEVICE PairPlace pair_place() {
  const int lane = threadIdx.x % kWarpLanes;
  const int warp = threadIdx.x / kWarpLanes;
  const int row = (lane & 1) | lane >> 4 << 1 | warp >> 1 << 2;
  const int out = (lane >> 1 & 7) | (warp & 1) << 3;
  PairPlace pair = {row, out, static_cast<uint32_t>(StageLayout<float>::place(row, 0) * 4),
                    static_cast<uint32_t>(StageLayout<float>::place(out, 0) * 4)};
  hold(pair.input_bytes);
  hold(pair.weight_bytes);
  return pair;
}

// What a block works on.
struct ForwardPlace {
  int64_t row;
  int64_t out;
  int64_t slice;
};

// What a thread knows of its pairs' masks.
struct PairMasks {
  int64_t masks;
  int64_t first_row;  // of this thread
  int64_t first_out;
  Divisor rows_per_mask;
};

constexpr int kOutWords = kSide * kGroupWords;  // from an output feature of a thread to its next

template <class R>
FUSED_DROPOUT_DEVICE void put_masks(ForwardShared<R>& shared, int r,
                                    const GroupBits (&bits)[kThreadTile]) {
#pragma unroll
  for (int w = 0; w < kGroupWords; ++w) {
    shared.mask[w][r][threadIdx.x] =
        make_uint4(bits[0].word[w], bits[1].word[w], bits[2].word[w], bits[3].word[w]);
  }
}

// The masks of this thread's pairs over `group`, from where they are stored.
template <class R>
FUSED_DROPOUT_DEVICE void read_masks(ForwardShared<R>& shared, const DropConnectProblem& problem,
                                     const PairMasks& pairs, int64_t group) {
#pragma unroll 1
  for (int r = 0; r < kThreadTile; ++r) {
    const int64_t row = pairs.first_row + r * kSide;
    const int64_t mask = quotient(row, pairs.rows_per_mask);
    const uint32_t* const from =
        problem.mask_bits + stored_word(problem, pairs.masks, mask, pairs.first_out, group);
    GroupBits bits[kThreadTile];
#pragma unroll
    for (int o = 0; o < kThreadTile; ++o) {
      bits[o] = group_of(0u);
      if (row < problem.rows && pairs.first_out + o * kSide < problem.out_features) {
        bits[o] = load_group(from + o * kOutWords);
      }
    }
    put_masks(shared, r, bits);
  }
}

// Leaves the bits of row r of the thread where masks are stored, if it is the first with its mask.
FUSED_DROPOUT_DEVICE void store_row(const DropConnectProblem& problem, const PairMasks& pairs,
                                    int r, int64_t group, uint32_t* bits_out,
                                    const GroupBits (&bits)[kThreadTile]) {
  const int64_t row = pairs.first_row + r * kSide;
  const int64_t mask = quotient(row, pairs.rows_per_mask);
  if (row >= problem.rows || row != mask * pairs.rows_per_mask.value) return;
  uint32_t* const to = bits_out + stored_word(problem, pairs.masks, mask, pairs.first_out, group);
#pragma unroll
  for (int o = 0; o < kThreadTile; ++o) {
    if (pairs.first_out + o * kSide < problem.out_features)
      store_group(to + o * kOutWords, bits[o]);
  }
}

// Draws the masks of this thread's pairs over `group`; kKeeps: and leaves them at `bits_out`.
// `Number` is the type that the numbers of all groups fit in.
template <class Number, bool kKeeps, class R>
FUSED_DROPOUT_DEVICE void draw_masks(ForwardShared<R>& shared, const DropConnectProblem& problem,
                                     const PairMasks& pairs, int64_t group, uint32_t* bits_out) {
  PhiloxKeys<uint32_t> keys = shared.keys;
  hold_all(keys);
  MaskRule rule = problem.rule;
  rule.offset[0] = shared.offset[0];
  rule.offset[1] = shared.offset[1];
  const int64_t row_groups = group_count(problem.in_features);
  const Number out_numbers = static_cast<Number>(kSide * row_groups);
  const Number row_numbers = static_cast<Number>(kSide * problem.out_features * row_groups);
  const int64_t mask = quotient(pairs.first_row, pairs.rows_per_mask);
  constexpr int kFurthest = (kThreadTile - 1) * kSide;
  const bool are_there = pairs.first_row + kFurthest < problem.rows &&
                         pairs.first_out + kFurthest < problem.out_features;
  // Every row has its own mask; if masks are kept, all of this thread's pairs are there.
  uint32_t is_simple = pairs.rows_per_mask.value == 1 && (!kKeeps || are_there);
  hold(is_simple);
  Number number = static_cast<Number>(group_number(problem, mask, pairs.first_out, group));
  uint32_t* to =
      kKeeps ? bits_out + stored_word(problem, pairs.masks, mask, pairs.first_out, group) : nullptr;
#pragma unroll 1
  for (int r = 0; r < kThreadTile; ++r) {
    const auto number_of = [&](int o) {
      return uint64_t{static_cast<Number>(number + static_cast<Number>(o) * out_numbers)};
    };
    GroupBits bits[kThreadTile];
    if (rule.digits == 1) {
      uint64_t groups[kThreadTile];
#pragma unroll
      for (int o = 0; o < kThreadTile; ++o) groups[o] = number_of(o);
      keep_groups_of_one_digit(rule, keys, groups, bits);
    } else {  // fewer at a time, since each takes more registers
#pragma unroll
      for (int o = 0; o < kThreadTile; ++o) bits[o] = keep_group(rule, keys, number_of(o));
    }
    put_masks(shared, r, bits);
    number += row_numbers;
    if (is_simple != 0) {
      if constexpr (kKeeps) {
#pragma unroll
        for (int o = 0; o < kThreadTile; ++o) store_group(to + o * kOutWords, bits[o]);
        to += kSide * stored_word(problem, pairs.masks, 1, 0, 0);
      }
      continue;
    }
    keep_branch();
    if constexpr (kKeeps) store_row(problem, pairs, r, group, bits_out, bits);
    const int64_t next = quotient(pairs.first_row + (r + 1) * kSide, pairs.rows_per_mask);
    number = static_cast<Number>(group_number(problem, next, pairs.first_out, group));
  }
}

// sums += the products of the columns of a stage, whose first one is column `col` of its group.
template <class R>
FUSED_DROPOUT_DEVICE void add_stage(const ForwardShared<R>& shared, int stage, int col,
                                    const PairPlace& pair, R (&sums)[kThreadTile][kThreadTile]) {
  constexpr int kRowBytes = kStageRuns * 16;
  const unsigned char* const inputs = reinterpret_cast<const unsigned char*>(shared.input[stage]);
  const unsigned char* const weights = reinterpret_cast<const unsigned char*>(shared.weight[stage]);
  uint32_t bits[kThreadTile][kThreadTile];
#pragma unroll
  for (int r = 0; r < kThreadTile; ++r) {
    const uint4 words = shared.mask[col / 32][r][threadIdx.x];
    bits[r][0] = words.x, bits[r][1] = words.y, bits[r][2] = words.z, bits[r][3] = words.w;
#pragma unroll
    for (int o = 0; o < kThreadTile; ++o) {
      if (kStageColumns<R> != 32) bits[r][o] >>= static_cast<unsigned>(col % 32);
    }
  }
#pragma unroll
  for (int first = 0; first < kStageColumns<R>; first += kByte) {
    R x[kThreadTile][kByte], w[kThreadTile][kByte];
#pragma unroll
    for (int c = 0; c < kByte; c += kRun<R>) {
      const int run = (first + c) / kRun<R>;
#pragma unroll
      for (int k = 0; k < kThreadTile; ++k) {
        load_run<R>(inputs + (pair.input_bytes ^ run * 16) + k * kSide * kRowBytes, &x[k][c]);
        load_run<R>(weights + (pair.weight_bytes ^ run * 16) + k * kSide * kRowBytes, &w[k][c]);
      }
    }
#pragma unroll
    for (int r = 0; r < kThreadTile; ++r) {
#pragma unroll
      for (int o = 0; o < kThreadTile; ++o) {
        const uint32_t kept = bits[r][o];
#pragma unroll
        for (int c = 0; c < kByte; ++c) {
          if (kept & 1u << (first + c)) sums[r][o] = fma(x[r][c], w[o][c], sums[r][o]);
        }
      }
    }
  }
}

// sums += the kept biases.
template <class T>
FUSED_DROPOUT_DEVICE void add_bias(ForwardShared<Real<T>>& shared,
                                   const DropConnectProblem& problem, const RngSource& rng,
                                   const Divisor& rows_per_mask, const Bias& bias,
                                   const ForwardPlace& at, const PairPlace& pair,
                                   Real<T> (&sums)[kThreadTile][kThreadTile]) {
  // A word of bits for half a row of the tile, where masks were.
  constexpr int kWords = kForwardOuts / 32;
  static_assert(kGroupColumns % kForwardOuts == 0, "a tile's biases are in one group");
  uint32_t (*const words)[kWords] = reinterpret_cast<uint32_t (*)[kWords]>(shared.mask);
  __syncthreads();
  const int row = threadIdx.x;
  if (row < kForwardRows) {
    const MaskRule rule = bias_rule(seeded(problem.rule, rng));
    const int64_t mask = quotient(at.row + row, rows_per_mask);
    const int64_t group = mask * group_count(problem.out_features) + at.out / kGroupColumns;
    const GroupBits bits = keep_group(rule, keys_of(rule), static_cast<uint64_t>(group));
    const bool is_second = at.out % kGroupColumns != 0;
    words[row][0] = is_second ? bits.word[2] : bits.word[0];
    words[row][1] = is_second ? bits.word[3] : bits.word[1];
  }
  __syncthreads();
#pragma unroll
  for (int o = 0; o < kThreadTile; ++o) {
    const int in_tile = pair.out + o * kSide;
    if (at.out + in_tile >= problem.out_features) continue;
    const Real<T> b = widen(static_cast<const T*>(bias.data)[(at.out + in_tile) * bias.stride]);
#pragma unroll
    for (int r = 0; r < kThreadTile; ++r) {
      if (words[pair.row + r * kSide][in_tile / 32] >> (in_tile % 32) & 1) sums[r][o] += b;
    }
  }
}

// output, or partial[slice][n][o] = the slice's share of the sum, unscaled, if there are slices.
// Masks are read, kStored, or drawn, and then left at `bits_out`, kKeeps.
template <class T, bool kStored, bool kKeeps>
__global__ void __launch_bounds__(kForwardThreads, kForwardBlocks<Real<T>>)
    forward_kernel(DropConnectProblem problem, RngSource rng, Divisor rows_per_mask, Operand input,
                   Operand weight, Bias bias, Slices slices, uint32_t* bits_out, Real<T>* partial,
                   T* output) {
  using R = Real<T>;
  static_assert(sizeof(ForwardShared<R>) <= kSharedBytes, "more than some GPUs have");
  FUSED_DROPOUT_DYNAMIC_SHARED(ForwardShared<R>, shared);
  const PairPlace pair = pair_place();
  const int64_t count = slice_count(slices);
  // All of these fit in 32 bits, as the number of blocks does.
  const uint32_t row_tiles = static_cast<uint32_t>(ceil_div(problem.rows, kForwardRows));
  const uint32_t tile = blockIdx.x / static_cast<uint32_t>(count);
  const ForwardPlace at = {int64_t{tile % row_tiles} * kForwardRows,
                           int64_t{tile / row_tiles} * kForwardOuts, blockIdx.x - tile * count};
  const PairMasks pairs = {mask_count(problem), at.row + pair.row, at.out + pair.out,
                           rows_per_mask};
  // 128 times 2^31 columns are more than any memory holds.
  const int first = static_cast<int>(at.slice * slices.length);
  const int last =
      static_cast<int>(first + slices.length < slices.steps ? first + slices.length : slices.steps);
  const int64_t first_col = int64_t{first} * kGroupColumns;
  using Copy = TileCopy<R, kForwardRows, kStageRuns, kForwardThreads, StageLayout<R>>;
  constexpr int kGroupStages = kGroupColumns / kStageColumns<R>;
  const uint32_t place = Copy::own_place();
  Copy inputs(input, at.row, first_col, place);
  Copy weights(weight, at.out, first_col, place);
  const int whole_inputs = whole_along_cols(input, at.row, first_col, kForwardRows, Copy::kCols);
  int whole = whole_along_cols(weight, at.out, first_col, kForwardOuts, Copy::kCols);
  if (whole_inputs < whole) whole = whole_inputs;
  int left = (last - first) * kGroupStages;  // stages that are not yet started
  const int cut = left - whole;              // the last of these, which a matrix has only in part
  const auto start = [&](int stage) {
    if (left > cut) {
      inputs.start(input, shared->input[stage]);
      weights.start(weight, shared->weight[stage]);
    } else {
      const int64_t col = int64_t{last} * kGroupColumns - int64_t{left} * kStageColumns<R>;
      inputs.start_at_edge(input, at.row, col, shared->input[stage]);
      weights.start_at_edge(weight, at.out, col, shared->weight[stage]);
    }
    copy_async_commit();
    inputs.next_cols();
    weights.next_cols();
    --left;
  };
  const bool are_short = has_short_numbers(problem);
  R sums[kThreadTile][kThreadTile] = {};
  if (left > 0) start(0);
  if constexpr (!kStored) {
    if (threadIdx.x == 0) {
      const MaskRule rule = seeded(problem.rule, rng);
      shared->keys = keys_of(rule);
      shared->offset[0] = rule.offset[0];
      shared->offset[1] = rule.offset[1];
    }
    __syncthreads();
  }
  for (int group = first; group < last; ++group) {
    if constexpr (kStored) {
      read_masks(*shared, problem, pairs, group);
    } else if (are_short) {
      draw_masks<uint32_t, kKeeps>(*shared, problem, pairs, group, bits_out);
    } else {
      draw_masks<uint64_t, kKeeps>(*shared, problem, pairs, group, bits_out);
    }
#pragma unroll 1
    for (int s = 0; s < kGroupStages; ++s) {
      copy_async_wait<0>();
      __syncthreads();  // stage s is there, and nobody looks at the one before any more
      if (left > 0) start((s + 1) % kStages);
      add_stage(*shared, s % kStages, s * kStageColumns<R>, pair, sums);
    }
  }
  if (bias.data != nullptr && count == 1) {
    add_bias<T>(*shared, problem, rng, rows_per_mask, bias, at, pair, sums);
  }
#pragma unroll
  for (int r = 0; r < kThreadTile; ++r) {
#pragma unroll
    for (int o = 0; o < kThreadTile; ++o) {
      const int64_t row = at.row + pair.row + r * kSide;
      const int64_t out = at.out + pair.out + o * kSide;
      if (row >= problem.rows || out >= problem.out_features) continue;
      if (count == 1) {
        narrow(sums[r][o] * static_cast<R>(problem.scale),
               &output[row * problem.out_features + out]);
      } else {
        partial[(at.slice * problem.rows + row) * problem.out_features + out] = sums[r][o];
      }
    }
  }
}

}  // namespace
}  // namespace fused_dropout::dropconnect
