// Per-example DropConnect on one core. All three products run over 128-column groups of
// in_features, with the mask words as lane masks; the accumulators stay in registers for a whole
// panel.
//
//   output[n, o]   = scale * sum_i M[n, o, i] weight[o, i] input[n, i]
//   d_input[n, i]  = scale * sum_o M[n, o, i] weight[o, i] grad[n, o]
//   d_weight[o, i] = scale * sum_n M[n, o, i] input[n, i] grad[n, o]
//
// Floor: rows * out_features * in_features multiply-adds for each. Every (n, o, 128 columns) costs
// one 16-byte mask, drawn into level-1 cache just before use or read from stored masks.
#pragma once

#include "../../dropconnect.h"
#include "../mask_bits.h"

namespace fused_dropout::dropconnect {
namespace {

constexpr int64_t kPanelColumns = 1024;               // columns of a forward panel
constexpr int64_t kPanelStride = kPanelColumns + 16;  // keeps rows off each other's cache sets
constexpr int64_t kPanelOuts = 32;  // output features whose masks are drawn at once
constexpr int64_t kGradRows = 32;   // rows of a gradient block
constexpr int64_t kGradSpan = 512;  // rows whose d_input is accumulated at once
constexpr int kOutsPerTile = 4;

// Calls f with `count` as a compile-time constant in 1..Max.
template <int Max, class F>
FUSED_DROPOUT_INLINE void with_count(int64_t count, F f) {
  if constexpr (Max > 1) {
    if (count < Max) return with_count<Max - 1>(count, f);
  }
  f(std::integral_constant<int, Max>{});
}

// sums[r][k] += dot(x[r], w[k]) over `groups` groups of columns, under the mask.
template <int Rows, class R>
void forward_tile(const R* x, const R* w, const uint8_t* const* row_bits, int64_t group_bytes,
                  int64_t groups, R* sums, int64_t sums_stride) {
  constexpr int kLanes = Vec<R>::kLanes;
  Vec<R> acc[Rows][kOutsPerTile];
  for (auto& row : acc) {
    for (auto& a : row) a = broadcast(R(0));
  }
  for (int64_t g = 0; g < groups; ++g) {
#pragma GCC unroll 8
    for (int chunk = 0; chunk < kGroupColumns / kLanes; ++chunk) {
      Vec<R> weights[kOutsPerTile];
      for (int k = 0; k < kOutsPerTile; ++k) weights[k] = load(w + k * kPanelStride);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Vec<R> inputs = load(x + r * kPanelStride);
        const uint8_t* bits = row_bits[r] + g * group_bytes;
#pragma GCC unroll 4
        for (int k = 0; k < kOutsPerTile; ++k) {
          acc[r][k] = fma_kept(bits + k * kGroupBytes, chunk, weights[k], inputs, acc[r][k]);
        }
      }
      x += kLanes;
      w += kLanes;
    }
  }
  for (int r = 0; r < Rows; ++r) add_sums4(sums + r * sums_stride, acc[r]);
}

template <class T>
struct ForwardScratch {
  explicit ForwardScratch(ScratchCursor& cursor)
      : x(cursor.take<Real<T>>(kForwardBlockRows * kPanelStride)),
        w(cursor.take<Real<T>>(kPanelOuts * kPanelStride)),
        sums(cursor.take<Real<T>>(kForwardBlockRows * kForwardBlockOuts)),
        bits(cursor.take<uint32_t>(kForwardRows * (kPanelColumns / kGroupColumns) * kPanelOuts *
                                   kGroupWords)) {}
  Real<T>* x;
  Real<T>* w;
  Real<T>* sums;  // [rows][kForwardBlockOuts]
  uint32_t* bits;
};

// One panel: kPanelOuts output features against all rows of the block.
template <class T>
void forward_panel(const DropConnectProblem& problem, const ForwardScratch<T>& s, Range rows,
                   Range outs, Range groups, int64_t sums_offset) {
  MaskBlock block(problem, s.bits);
  const Range drawn = {outs.begin, outs.begin + round_up(outs.size(), kStoredOutsMultiple)};
  for (int64_t r = rows.begin; r < rows.end; r += kForwardRows) {
    const Range tile = {r, smaller(r + kForwardRows, rows.end)};
    const MaskBits bits = block.bits(tile, groups, drawn);
    const Real<T>* x = s.x + (r - rows.begin) * kPanelStride;
    Real<T>* sums = s.sums + (r - rows.begin) * kForwardBlockOuts + sums_offset;
    for (int64_t o = 0; o < outs.size(); o += kOutsPerTile) {
      const uint8_t* row_bits[kForwardRows] = {};
      for (int64_t n = r; n < tile.end; ++n) {
        row_bits[n - r] = bits.row(problem, n) + o * kGroupBytes;
      }
      with_count<kForwardRows>(tile.size(), [&](auto count) {
        forward_tile<decltype(count)::value>(x, s.w + o * kPanelStride, row_bits, bits.group_bytes,
                                             groups.size(), sums + o, kForwardBlockOuts);
      });
    }
  }
}

// output = scale * (sums + kept bias)
template <class T>
void finish_forward(const ForwardArgs& args, Range rows, Range outs, Real<T>* sums) {
  const DropConnectProblem& problem = args.problem;
  const T* bias = static_cast<const T*>(args.bias);
  const int64_t mask_words = group_count(problem.out_features) * kGroupWords;
  for (int64_t n = rows.begin; n < rows.end && bias != nullptr; ++n) {
    const uint32_t* bits = args.bias_bits + n / problem.rows_per_mask * mask_words;
    Real<T>* row = sums + (n - rows.begin) * kForwardBlockOuts - outs.begin;
    for (int64_t o = outs.begin; o < outs.end; ++o) {
      if (bits[o / 32] >> (o % 32) & 1) row[o] += widen(bias[o * args.bias_stride]);
    }
  }
  store_panel(sums, kForwardBlockOuts, rows, outs, static_cast<Real<T>>(problem.scale),
              static_cast<T*>(args.output), problem.out_features);
}

template <class T>
void forward(const ForwardArgs& args, Range rows, Range outs, void* scratch) {
  const DropConnectProblem& problem = args.problem;
  ScratchCursor cursor(scratch);
  const ForwardScratch<T> s(cursor);
  for (int64_t k = 0; k < rows.size() * kForwardBlockOuts; ++k) s.sums[k] = 0;
  for (int64_t c = 0; c < problem.in_features; c += kPanelColumns) {
    const Range cols = {c, smaller(c + kPanelColumns, problem.in_features)};
    const Range groups = {c / kGroupColumns, group_count(cols.end)};
    const int64_t padded = groups.size() * kGroupColumns;
    pack_panel<T>(args.input, rows, cols, rows.size(), padded, s.x, kPanelStride);
    for (int64_t o = outs.begin; o < outs.end; o += kPanelOuts) {
      const Range panel = {o, smaller(o + kPanelOuts, outs.end)};
      pack_panel<T>(args.weight, panel, cols, round_up(panel.size(), kOutsPerTile), padded, s.w,
                    kPanelStride);
      forward_panel<T>(problem, s, rows, panel, groups, o - outs.begin);
    }
  }
  finish_forward<T>(args, rows, outs, s.sums);
}

// result[a][c] += sum_b M[a, b, c] panel[b][c] grad[a][b], for a tile of rows a and columns c.
// d_input takes a = row, b = output feature; d_weight the other way round (kOutsAreRows).
template <int Rows, bool kOutsAreRows, class R>
void outer_tile(const R* panel, const R* grad, const uint8_t* const* row_bits, int64_t count,
                int first_chunk, R* result) {
  constexpr int kLanes = Vec<R>::kLanes;
  Vec<R> acc[Rows][kOuterChunks];
  for (auto& row : acc) {
    for (auto& a : row) a = broadcast(R(0));
  }
  for (int64_t b = 0; b < count; ++b) {
    Vec<R> values[kOuterChunks];
    for (int c = 0; c < kOuterChunks; ++c) {
      values[c] = load(panel + b * kGroupColumns + (first_chunk + c) * kLanes);
    }
#pragma GCC unroll 8
    for (int a = 0; a < Rows; ++a) {
      const Vec<R> factor =
          broadcast(kOutsAreRows ? grad[b * kPanelOuts + a] : grad[a * kPanelOuts + b]);
      const uint8_t* bits =
          kOutsAreRows ? row_bits[b] + a * kGroupBytes : row_bits[a] + b * kGroupBytes;
#pragma GCC unroll 8
      for (int c = 0; c < kOuterChunks; ++c) {
        acc[a][c] = fma_kept(bits, first_chunk + c, values[c], factor, acc[a][c]);
      }
    }
  }
  for (int a = 0; a < Rows; ++a) {
    for (int c = 0; c < kOuterChunks; ++c) {
      R* out = result + a * kGroupColumns + (first_chunk + c) * kLanes;
      store(out, load(out) + acc[a][c]);
    }
  }
}

// Adds one block of rows x output features to the panels of d_input or d_weight.
template <bool kOutsAreRows, class R>
void outer_block(const R* panel, const R* grad, const uint8_t* const* row_bits, int64_t rows,
                 int64_t outs, R* result) {
  const int64_t results = kOutsAreRows ? outs : rows;
  const int64_t count = kOutsAreRows ? rows : outs;
  constexpr int kChunks = kGroupColumns / Vec<R>::kLanes;
  for (int64_t a = 0; a < results; a += kOuterRows) {
    const uint8_t* tile_bits[kGradRows] = {};
    const int64_t pointers = kOutsAreRows ? rows : smaller(kOuterRows, rows - a);
    for (int64_t k = 0; k < pointers; ++k) {
      tile_bits[k] = kOutsAreRows ? row_bits[k] + a * kGroupBytes : row_bits[a + k];
    }
    const R* factors = grad + (kOutsAreRows ? a : a * kPanelOuts);
    with_count<kOuterRows>(results - a, [&](auto size) {
      for (int chunk = 0; chunk < kChunks; chunk += kOuterChunks) {
        outer_tile<decltype(size)::value, kOutsAreRows>(panel, factors, tile_bits, count, chunk,
                                                        result + a * kGroupColumns);
      }
    });
  }
}

template <class T>
struct BackwardScratch {
  BackwardScratch(ScratchCursor& cursor, Range outs)
      : x(cursor.take<Real<T>>(kGradSpan * kGroupColumns)),
        d_input(cursor.take<Real<T>>(kGradSpan * kGroupColumns)),
        w(cursor.take<Real<T>>(kPanelOuts * kGroupColumns)),
        grad(cursor.take<Real<T>>(kGradRows * kPanelOuts)),
        d_weight(cursor.take<Real<T>>(outs.size() * kGroupColumns)),
        bits(cursor.take<uint32_t>(kGradRows * kPanelOuts * kGroupWords)) {}
  Real<T>* x;
  Real<T>* d_input;
  Real<T>* w;
  Real<T>* grad;
  Real<T>* d_weight;
  uint32_t* bits;
};

// Both gradients of kPanelOuts output features from a span of rows.
template <class T>
void backward_panel(const BackwardArgs& args, const BackwardScratch<T>& s, int64_t group,
                    Range span, Range outs, Real<T>* d_weight) {
  MaskBlock block(args.problem, s.bits);
  const Range groups = {group, group + 1};
  const Range drawn = {outs.begin, outs.begin + round_up(outs.size(), kStoredOutsMultiple)};
  for (int64_t n = span.begin; n < span.end; n += kGradRows) {
    const Range rows = {n, smaller(n + kGradRows, span.end)};
    const MaskBits bits = block.bits(rows, groups, drawn);
    const uint8_t* row_bits[kGradRows];
    for (int64_t r = rows.begin; r < rows.end; ++r) row_bits[r - n] = bits.row(args.problem, r);
    pack_panel<T>(args.grad_output, rows, outs, rows.size(), kPanelOuts, s.grad, kPanelOuts);
    const int64_t offset = (n - span.begin) * kGroupColumns;
    if (args.d_input != nullptr) {
      outer_block<false>(s.w, s.grad, row_bits, rows.size(), outs.size(), s.d_input + offset);
    }
    if (args.d_weight != nullptr) {
      outer_block<true>(s.x + offset, s.grad, row_bits, rows.size(), outs.size(), d_weight);
    }
  }
}

template <class T>
void backward(const BackwardArgs& args, int64_t group, Range rows, Range outs, void* scratch) {
  using R = Real<T>;
  const DropConnectProblem& problem = args.problem;
  ScratchCursor cursor(scratch);
  const BackwardScratch<T> s(cursor, outs);
  const Range cols = {group * kGroupColumns,
                      smaller((group + 1) * kGroupColumns, problem.in_features)};
  const R scale = static_cast<R>(problem.scale);
  if (args.d_weight != nullptr) {
    for (int64_t k = 0; k < outs.size() * kGroupColumns; ++k) s.d_weight[k] = 0;
  }
  for (int64_t n = rows.begin; n < rows.end; n += kGradSpan) {
    const Range span = {n, smaller(n + kGradSpan, rows.end)};
    if (args.d_weight != nullptr) {
      pack_panel<T>(args.input, span, cols, span.size(), kGroupColumns, s.x, kGroupColumns);
    }
    if (args.d_input != nullptr) {
      for (int64_t k = 0; k < span.size() * kGroupColumns; ++k) s.d_input[k] = 0;
    }
    for (int64_t o = outs.begin; o < outs.end; o += kPanelOuts) {
      const Range panel = {o, smaller(o + kPanelOuts, outs.end)};
      if (args.d_input != nullptr) {
        pack_panel<T>(args.weight, panel, cols, panel.size(), kGroupColumns, s.w, kGroupColumns);
      }
      backward_panel<T>(args, s, group, span, panel, s.d_weight + (o - outs.begin) * kGroupColumns);
    }
    if (args.d_input != nullptr) {
      store_panel(s.d_input, kGroupColumns, span, cols, scale, static_cast<T*>(args.d_input),
                  problem.in_features);
    }
  }
  if (args.d_weight != nullptr) {
    store_panel(s.d_weight, kGroupColumns, outs, cols, scale, static_cast<T*>(args.d_weight),
                problem.in_features);
  }
}

// d_bias[o] = scale * sum_n m[n, o] grad[n, o], for 128 output features.
template <class T>
void bias_grad(const BiasGradArgs& args, int64_t group) {
  using R = Real<T>;
  constexpr int kLanes = Vec<R>::kLanes;
  R sums[kGroupColumns] = {};
  R grad[kGradRows * kGroupColumns];
  const int64_t groups = group_count(args.out_features);
  const Range outs = {group * kGroupColumns,
                      smaller((group + 1) * kGroupColumns, args.out_features)};
  for (int64_t n = 0; n < args.rows; n += kGradRows) {
    const Range rows = {n, smaller(n + kGradRows, args.rows)};
    pack_panel<T>(args.grad_output, rows, outs, rows.size(), kGroupColumns, grad, kGroupColumns);
#pragma GCC unroll 8
    for (int chunk = 0; chunk < kGroupColumns / kLanes; ++chunk) {
      Vec<R> sum = broadcast(R(0));  // of one block: partial sums keep rounding errors small
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        const int64_t mask_group = r / args.rows_per_mask * groups + group;
        const uint8_t* bits =
            reinterpret_cast<const uint8_t*>(args.bias_bits + mask_group * kGroupWords);
        const R* value = grad + (r - n) * kGroupColumns + chunk * kLanes;
        sum = fma_kept(bits, chunk, load(value), broadcast(R(1)), sum);
      }
      store(sums + chunk * kLanes, load(sums + chunk * kLanes) + sum);
    }
  }
  store_panel(sums, kGroupColumns, {0, 1}, outs, static_cast<R>(args.scale),
              static_cast<T*>(args.d_bias), 0);
}

template <template <class> class Scratch, class... Args>
size_t scratch_bytes(ScalarType type, Args... args) {
  ScratchCursor cursor(nullptr);
  if (type == ScalarType::kFloat64) {
    Scratch<double>(cursor, args...);
  } else {
    Scratch<float>(cursor, args...);
  }
  return cursor.used();
}

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {[](ScalarType type) { return scratch_bytes<ForwardScratch>(type); },
          {forward<float>, forward<BFloat16>, forward<Float16>, forward<double>},
          [](ScalarType type, Range outs) { return scratch_bytes<BackwardScratch>(type, outs); },
          {backward<float>, backward<BFloat16>, backward<Float16>, backward<double>},
          {bias_grad<float>, bias_grad<BFloat16>, bias_grad<Float16>, bias_grad<double>}};
}

}  // namespace fused_dropout::dropconnect

FUSED_DROPOUT_INSTANTIATE(fused_dropout::dropconnect::Kernels);
