// d_input and d_weight of a DropConnect layer (see dropconnect.cuh). Both are
// result[a][cols] = sum_b M panel[b][cols] grad[a, b] over one group of 128 columns: d_input with
// a = row, b = output feature, panel = weight; d_weight with a = output feature, b = row,
// panel = input.
//
// A block has 32 a's, a thread 4 of them and 8 columns. It takes 16 b's at a time: while it
// multiplies, the values of the next 16 are on their way, and each thread draws four of their
// masks, or has them copied. One barrier stands between two such steps.
#pragma once

#include "dropconnect_operands.cuh"

namespace fused_dropout::dropconnect {
namespace {

constexpr int kGradientThreads = 128;
template <class R>
constexpr int kGradientBlocks = sizeof(R) == 8 ? 1 : 4;  // of a multiprocessor, at least
constexpr int kResultRows = 32;                          // a's of a block
constexpr int kChunk = 16;                               // b's of a step
constexpr int kColumns = 8;                              // of a thread: one byte of mask bits
constexpr int kColumnThreads = kGroupColumns / kColumns;
constexpr int kResultThreads = kResultRows / kThreadTile;
constexpr int kOwnPairs = kChunk * kResultRows / kGradientThreads;  // that a thread brings
constexpr int kLockstep = 1;  // of groups with many digits that a thread draws, beside its sums
constexpr int kGradStride = kResultRows + 4;
constexpr int kMaskStride = kResultRows + 1;
static_assert(kColumnThreads * kResultThreads == kGradientThreads, "a thread for each result");

// A thread's columns are two runs, or four of doubles, which lie 16 runs apart: so the threads of a
// row load neighbouring runs, which are in different banks.
template <class R>
struct PanelLayout {
  static constexpr int kOwnRuns = kColumns / kRun<R>;
  static constexpr int kRuns = kGroupColumns / kRun<R>;
  static constexpr int kStep = kGradientThreads * kRun<R>;
  FUSED_DROPOUT_DEVICE static int place(int row, int run) {
    return row * kGroupColumns + (run % kOwnRuns * kColumnThreads + run / kOwnRuns) * kRun<R>;
  }
};

template <class R>
struct GradientShared {
  R panel[2][kChunk * kGroupColumns];
  R grad[2][kChunk][kGradStride];
  uint4 mask[2][kChunk][kMaskStride];
  PhiloxKeys<uint32_t> keys;
};

// Where a thread stands: lanes 2 k and 2 k + 1 have the same columns, lanes that differ by 2 the
// same a's, for the sake of loads from shared memory as in dropconnect_forward.cuh.
struct ResultPlace {
  int columns;  // the first is 8 times this
  int results;  // the first a is 4 times this
};

FUSED_DROPOUT_DEVICE ResultPlace result_place() {
  const int lane = threadIdx.x % kWarpLanes;
  const int warp = threadIdx.x / kWarpLanes;
  return {(lane >> 1 & 7) | (warp & 1) << 3, (lane & 1) | lane >> 4 << 1 | warp >> 1 << 2};
}

// One of the two gradients.
struct Gradient {
  Operand panel;
  Slices slices;   // of the sum, in steps
  int64_t blocks;  // tiles times slices
  void* partial;   // [slice][a][cols] of Real<T>, unscaled, if there are several slices
  void* result;    // of T
};

// What a block works on.
struct GradientPlace {
  int64_t group;
  int64_t first_result;
  int64_t slice;
};

// The pairs (a, b) of a step that this thread brings: the threads of a warp have the output
// features of a row or two. Its others are kNextA a's or kNextB b's further on.
//
// The masks of a b lie in shared memory so that a warp's threads look at neighbouring ones, which
// are in different banks: first the first a of each thread, then the second of each, and so on.
template <bool kOutsAreResults>
struct OwnPairs {
  static constexpr int kNextA = kOutsAreResults ? 0 : kGradientThreads / kChunk;
  static constexpr int kNextB = kOutsAreResults ? kGradientThreads / kResultRows : 0;
  static constexpr int kNextRow = kOutsAreResults ? kNextB : kNextA;
  static constexpr int kNextMask = kNextB * kMaskStride + kNextA / kThreadTile;
  static_assert(kNextA % kThreadTile == 0, "the same of a thread's a's");
  FUSED_DROPOUT_DEVICE static int a() {
    if constexpr (!kOutsAreResults) return threadIdx.x / kChunk;
    const int place = threadIdx.x % kResultRows;  // in the order of masks, for the sake of banks
    return place % kResultThreads * kThreadTile + place / kResultThreads;
  }
  FUSED_DROPOUT_DEVICE static int b() {
    return kOutsAreResults ? threadIdx.x / kResultRows : threadIdx.x % kChunk;
  }
  FUSED_DROPOUT_DEVICE static int mask() {
    return b() * kMaskStride + a() % kThreadTile * kResultThreads + a() / kThreadTile;
  }
};

// Where a thread's first pair stands, of the step that is to be started.
struct OwnPlace {
  int64_t row;
  int64_t out;
  const unsigned char* grad;
  uint64_t masks;  // the number of its group, or the word of its stored bits
};

// Starts to copy grad[a, b] of this thread's pairs, 0 for those outside the matrix.
template <class R, bool kOutsAreResults>
FUSED_DROPOUT_DEVICE void start_grad(GradientShared<R>& shared, int stage, const Operand& grad,
                                     const OwnPlace& own, bool is_whole) {
  using Own = OwnPairs<kOutsAreResults>;
  R* const to = &shared.grad[stage][Own::b()][Own::a()];
#pragma unroll
  for (int k = 0; k < kOwnPairs; ++k) {
    R* const element = to + k * (Own::kNextB * kGradStride + Own::kNextA);
    const unsigned char* const from = own.grad + k * (Own::kNextRow * grad.row_bytes);
    if (is_whole) {
      copy_async<sizeof(R)>(element, from);
    } else {
      const bool is_there = own.out < grad.cols && own.row + k * Own::kNextRow < grad.rows;
      copy_async<sizeof(R)>(element, is_there ? from : grad.data,
                            is_there ? static_cast<int>(sizeof(R)) : 0);
    }
  }
}

// What a thread needs to bring masks.
struct MaskSource {
  const DropConnectProblem& problem;
  const Divisor& rows_per_mask;
  int64_t of_mask;  // from one mask's numbers (or words) to the next one's
};

// OwnPlace::masks of the k-th pair. kShared: rows have masks in common.
template <bool kOutsAreResults, bool kShared>
FUSED_DROPOUT_DEVICE uint64_t masks_of_pair(const MaskSource& source, const OwnPlace& own, int k) {
  constexpr int kNextRow = OwnPairs<kOutsAreResults>::kNextRow;
  if constexpr (!kShared) return own.masks + static_cast<uint64_t>(k * (kNextRow * source.of_mask));
  const int64_t mask = quotient(own.row + k * kNextRow, source.rows_per_mask);
  return own.masks + static_cast<uint64_t>((mask - own.row) * source.of_mask);
}

// Starts to copy the stored masks of this thread's pairs, all of which are there.
template <class R, bool kOutsAreResults>
FUSED_DROPOUT_DEVICE void start_masks(GradientShared<R>& shared, int stage,
                                      const MaskSource& source, const OwnPlace& own) {
  using Own = OwnPairs<kOutsAreResults>;
  uint4* const to = &shared.mask[stage][0][0] + Own::mask();
#pragma unroll
  for (int k = 0; k < kOwnPairs; ++k) {
    copy_async<16>(
        to + k * Own::kNextMask,
        source.problem.mask_bits + masks_of_pair<kOutsAreResults, false>(source, own, k));
  }
}

// The same where rows may share masks, and where pairs may be missing, whose masks become 0.
template <class R, bool kOutsAreResults>
FUSED_DROPOUT_DEVICE void start_masks_at_edge(GradientShared<R>& shared, int stage,
                                              const MaskSource& source, const OwnPlace& own) {
  using Own = OwnPairs<kOutsAreResults>;
  const uint32_t* const bits = source.problem.mask_bits;
  uint4* const to = &shared.mask[stage][0][0] + Own::mask();
#pragma unroll 1
  for (int k = 0; k < kOwnPairs; ++k) {
    const bool is_there =
        own.out < source.problem.out_features && own.row + k * Own::kNextRow < source.problem.rows;
    copy_async<16>(to + k * Own::kNextMask,
                   is_there ? bits + masks_of_pair<kOutsAreResults, true>(source, own, k) : bits,
                   is_there ? 16 : 0);
  }
}

// Draws the masks of kGroups pairs from `first` on, by keep(group numbers, bits).
template <class Number, int kGroups, bool kShared, class R, bool kOutsAreResults, class Keep>
FUSED_DROPOUT_DEVICE void draw_pairs(GradientShared<R>& shared, int stage, const MaskSource& source,
                                     const OwnPlace& own, int first, Keep keep) {
  using Own = OwnPairs<kOutsAreResults>;
  uint4* const to = &shared.mask[stage][0][0] + Own::mask();
  uint64_t groups[kGroups];
  GroupBits bits[kGroups];
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
    groups[k] =
        static_cast<Number>(masks_of_pair<kOutsAreResults, kShared>(source, own, first + k));
  }
  keep(groups, bits);
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
    to[(first + k) * Own::kNextMask] =
        make_uint4(bits[k].word[0], bits[k].word[1], bits[k].word[2], bits[k].word[3]);
  }
}

// Draws the masks of this thread's pairs. `Number` is the type that the numbers of all groups fit
// in.
template <class Number, class R, bool kOutsAreResults>
FUSED_DROPOUT_DEVICE void draw_masks(GradientShared<R>& shared, int stage, const MaskSource& source,
                                     const OwnPlace& own) {
  const MaskRule& rule = source.problem.rule;
  PhiloxKeys<uint32_t> keys = shared.keys;
  hold_all(keys);
  const auto one_digit = [&](const auto& groups, auto& kept) {
    keep_groups_of_one_digit(rule, keys, groups, kept);
  };
  const auto any_digits = [&](const auto& groups, auto& kept) {
    keep_groups(rule, keys, groups, kept);
  };
  if (source.rows_per_mask.value == 1 && rule.digits == 1) {
    draw_pairs<Number, kOwnPairs, false, R, kOutsAreResults>(shared, stage, source, own, 0,
                                                             one_digit);
    return;
  }
#pragma unroll 1
  for (int k = 0; k < kOwnPairs; k += kLockstep) {
    draw_pairs<Number, kLockstep, true, R, kOutsAreResults>(shared, stage, source, own, k,
                                                            any_digits);
  }
}

// sums += the products of one b.
template <class R>
FUSED_DROPOUT_DEVICE void add_source(const GradientShared<R>& shared, int stage, int b,
                                     const ResultPlace& place, R (&sums)[kThreadTile][kColumns]) {
  R values[kColumns], grad[kThreadTile];
#pragma unroll
  for (int run = 0; run < kColumns / kRun<R>; ++run) {
    const int at = b * kGroupColumns + (run * kColumnThreads + place.columns) * kRun<R>;
    load_run<R>(&shared.panel[stage][at], &values[run * kRun<R>]);
  }
#pragma unroll
  for (int a = 0; a < kThreadTile; a += kRun<R>) {
    load_run<R>(&shared.grad[stage][b][place.results * kThreadTile + a], &grad[a]);
  }
#pragma unroll
  for (int a = 0; a < kThreadTile; ++a) {
    const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(
        &shared.mask[stage][b][a * kResultThreads + place.results]);
    uint32_t bits = uint32_t{bytes[place.columns]} << 8;
    hold(bits);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      // One R2P makes predicates of seven bits (not of a word's lowest one, hence the shift), a
      // comparison one of the eighth.
      const uint32_t bit = 256u << c;
      const bool is_kept = c == kColumns - 1 ? bits >= bit : (bits & bit) != 0;
      if (is_kept) sums[a][c] = fma(values[c], grad[a], sums[a][c]);
    }
  }
}

// A thread's results, times `scale`, to rows of `cols` elements.
template <class T, class R>
FUSED_DROPOUT_DEVICE void store_results(const R (&sums)[kThreadTile][kColumns], R scale,
                                        int64_t row, int64_t rows, int64_t col, int64_t cols,
                                        T* results) {
  constexpr int kTogether = 4;
#pragma unroll
  for (int a = 0; a < kThreadTile; ++a) {
#pragma unroll
    for (int first = 0; first < kColumns; first += kTogether) {
      R x[kTogether];
#pragma unroll
      for (int c = 0; c < kTogether; ++c) x[c] = sums[a][first + c] * scale;
      T* const to = results + (row + a) * cols + col + first;
      if (row + a < rows && cols % kTogether == 0) {
        if (col + first < cols) store_neighbours<T, kTogether>(x, to);
      } else if (row + a < rows) {
#pragma unroll
        for (int c = 0; c < kTogether; ++c) {
          if (col + first + c < cols) narrow(x[c], to + c);
        }
      }
    }
  }
}

template <class T, bool kStored, bool kOutsAreResults>
FUSED_DROPOUT_DEVICE void compute_gradient(GradientShared<Real<T>>& shared,
                                           const DropConnectProblem& problem,
                                           const Divisor& rows_per_mask, const Operand& grad,
                                           const Gradient& gradient, int64_t block) {
  using R = Real<T>;
  using Layout = PanelLayout<R>;
  using Own = OwnPairs<kOutsAreResults>;
  const int64_t row_groups = group_count(problem.in_features);
  const int64_t count = slice_count(gradient.slices);
  const int64_t results = kOutsAreResults ? problem.out_features : problem.rows;
  const GradientPlace at = {block / count % row_groups, block / count / row_groups * kResultRows,
                            block % count};
  const ResultPlace place = result_place();
  const Slices& slices = gradient.slices;
  const int64_t first = at.slice * slices.length;
  const int64_t last = first + slices.length < slices.steps ? first + slices.length : slices.steps;
  const int64_t first_col = at.group * kGroupColumns;
  const bool are_short = has_short_numbers(problem);
  const int64_t masks = mask_count(problem);
  const MaskSource source = {
      problem, rows_per_mask,
      kStored ? stored_word(problem, masks, 1, 0, 0) : problem.out_features * row_groups};
  OwnPlace own;
  own.row = kOutsAreResults ? first * kChunk + Own::b() : at.first_result + Own::a();
  own.out = kOutsAreResults ? at.first_result + Own::a() : first * kChunk + Own::b();
  own.grad = grad.data + own.row * grad.row_bytes + own.out * static_cast<int64_t>(sizeof(R));
  // As if no rows shared a mask; masks_of_pair sets that right.
  own.masks = kStored
                  ? static_cast<uint64_t>(stored_word(problem, masks, own.row, own.out, at.group))
                  : group_number(problem, own.row, own.out, at.group);
  const int64_t step_bytes = kOutsAreResults ? kChunk * grad.row_bytes : kChunk * sizeof(R);
  const int64_t step_masks = kOutsAreResults ? kChunk * source.of_mask
                             : kStored       ? kChunk * kGroupWords
                                             : kChunk * row_groups;
  using Copy = TileCopy<R, kChunk, Layout::kRuns, kGradientThreads, Layout>;
  Copy panels(gradient.panel, first * kChunk, first_col, Copy::own_place());
  // Stored masks that rows share are none that start_masks knows.
  const bool is_simple = !kStored || rows_per_mask.value == 1;
  int whole =
      is_simple && at.first_result + kResultRows <= results
          ? whole_along_rows(gradient.panel, first * kChunk, first_col, kChunk, kGroupColumns)
          : 0;
  const auto start = [&](int64_t chunk, int stage) {
    if (whole > 0) {
      panels.start(gradient.panel, shared.panel[stage]);
      start_grad<R, kOutsAreResults>(shared, stage, grad, own, true);
      if constexpr (kStored) start_masks<R, kOutsAreResults>(shared, stage, source, own);
    } else {
      panels.start_at_edge(gradient.panel, chunk * kChunk, first_col, shared.panel[stage]);
      start_grad<R, kOutsAreResults>(shared, stage, grad, own, false);
      if constexpr (kStored) start_masks_at_edge<R, kOutsAreResults>(shared, stage, source, own);
    }
    copy_async_commit();
    if constexpr (kStored) {
      // Their copies are on their way.
    } else if (are_short) {
      draw_masks<uint32_t, R, kOutsAreResults>(shared, stage, source, own);
    } else {
      draw_masks<uint64_t, R, kOutsAreResults>(shared, stage, source, own);
    }
    panels.next_rows(gradient.panel);
    --whole;
    own.grad += step_bytes;
    own.masks += static_cast<uint64_t>(step_masks);
    (kOutsAreResults ? own.row : own.out) += kChunk;
  };
  R sums[kThreadTile][kColumns] = {};
  for (int64_t chunk = first; first < last; ++chunk) {
    const int stage = static_cast<int>((chunk - first) % 2);
    if (chunk < last) start(chunk, stage);
    if (chunk > first) {
#pragma unroll 8
      for (int b = 0; b < kChunk; ++b) add_source(shared, 1 - stage, b, place, sums);
    }
    if (chunk == last) break;
    copy_async_wait<0>();
    __syncthreads();  // this step's values are there, and nobody looks at those before any more
  }
  const int64_t row = at.first_result + place.results * kThreadTile;
  const int64_t col = first_col + place.columns * kColumns;
  if (count == 1) {
    store_results(sums, static_cast<R>(problem.scale), row, results, col, problem.in_features,
                  static_cast<T*>(gradient.result));
  } else {
    store_results(sums, R(1), row, results, col, problem.in_features,
                  static_cast<R*>(gradient.partial) + at.slice * results * problem.in_features);
  }
}

// The blocks of d_input come first: where both are wanted, theirs are the long sums.
template <class T, bool kStored>
__global__ void __launch_bounds__(kGradientThreads, kGradientBlocks<Real<T>>)
    gradients_kernel(DropConnectProblem problem, RngSource rng, Divisor rows_per_mask, Operand grad,
                     Gradient d_input, Gradient d_weight) {
  using R = Real<T>;
  static_assert(sizeof(GradientShared<R>) <= kSharedBytes, "more than some GPUs have");
  FUSED_DROPOUT_DYNAMIC_SHARED(GradientShared<R>, shared);
  problem.rule = seeded(problem.rule, rng);
  if (threadIdx.x == 0) shared->keys = keys_of(problem.rule);
  __syncthreads();
  const int64_t block = blockIdx.x;
  if (block < d_input.blocks) {
    compute_gradient<T, kStored, false>(*shared, problem, rows_per_mask, grad, d_input, block);
  } else {
    compute_gradient<T, kStored, true>(*shared, problem, rows_per_mask, grad, d_weight,
                                       block - d_input.blocks);
  }
}

}  // namespace
}  // namespace fused_dropout::dropconnect
