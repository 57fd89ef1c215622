// DropConnect's two gradients on one core, for one group of 128 columns.
//
//   d_input[n, i]  = scale * sum_o M[n, o, i] weight[o, i] grad[n, o]
//   d_weight[o, i] = scale * sum_n M[n, o, i] input[n, i] grad[n, o]
//
// A block of kGradRows rows x kGradOuts output features x 128 columns is worked off a slice of
// kGradSteps vectors at a time. For a tile of rows, d_input stays in registers over the block's
// output features, while d_weight and the weights pass by; both products of a connection use the
// mask bit that was brought once. Floor, for two vectors of multiply-adds:
//   AVX-512  3 instructions: a load into a mask register (port 5 on Intel), two masked FMAs (ports
//            0 and 5): 1.5 cycles on Ice Lake and Sapphire Rapids, 2 on Zen 4.
//   AVX2     4 instructions: masked load of the gradient, two FMAs, addition. Intel (Skylake to
//            Golden Cove): 4 uops for ports 0, 1 and 5, 1.3 cycles; with the 4 loads and stores
//            around them 8 uops, 1.3 cycles at 6 a cycle, 2 at Skylake's 4. Zen 2 to 4: 2.5 loads,
//            1.25 cycles at 2 a cycle.
// The two dense products take 1 cycle.
#pragma once

#include "../../common/with_constant.h"
#include "../dropconnect.h"
#include "mask_bits.h"

namespace fused_dropout::dropconnect {
namespace {

constexpr int64_t kGradRows = 16;       // rows of a block
constexpr int64_t kGradOuts = 16;       // output features of a block
constexpr int64_t kGradPanelOuts = 64;  // output features whose masks are drawn at once
constexpr int64_t kGradSpan = 512;      // rows whose d_input is accumulated at once
constexpr int64_t kSummedBlocks = 4;    // blocks of rows whose d_weight is summed by itself

template <class R>
constexpr int64_t kSliceColumns = kGradSteps * Vec<R>::kLanes;

// Panels lie in blocks of `rows` rows, each [slices][rows][kSliceColumns]. Where row `row` has the
// slice that begins with `column` of the group:
template <class R>
FUSED_DROPOUT_INLINE int64_t slice_row(int64_t rows, int64_t row, int64_t column) {
  return row / rows * rows * kGroupColumns + column * rows + row % rows * kSliceColumns<R>;
}

// Where the row has its step `step`, counted from slice_row of column 0.
template <class R>
FUSED_DROPOUT_INLINE int64_t step_in_slices(int64_t rows, int step) {
  return (step / kGradSteps * rows * kGradSteps + step % kGradSteps) * Vec<R>::kLanes;
}

// Packs one group of columns, in blocks of block_rows rows. Says whether all numbers are finite,
// where that matters.
template <class T>
bool pack_slices(const MatrixView& matrix, Range rows, Range cols, int64_t block_rows,
                 Real<T>* panel) {
  using R = Real<T>;
  bool finite = true;
  R space[kGroupColumns];
  for (int64_t r = 0; r < rows.size(); ++r) {
    const R* columns = group_of_columns<T>(matrix, rows.begin + r, cols, space);
    if constexpr (kMasksOperands) finite &= all_finite(columns, 1, kGroupColumns);
    R* row = panel + slice_row<R>(block_rows, r, 0);
    arrange(columns, [&](int step) { return row + step_in_slices<R>(block_rows, step); });
  }
  return finite;
}

// out[rows, cols] of a contiguous matrix = scale * panel.
template <class T>
void store_slices(const Real<T>* panel, int64_t block_rows, Range rows, Range cols, Real<T> scale,
                  T* out, int64_t out_stride) {
  using R = Real<T>;
  R columns[kGroupColumns];
  for (int64_t r = 0; r < rows.size(); ++r) {
    const R* row = panel + slice_row<R>(block_rows, r, 0);
    restore([&](int step) { return row + step_in_slices<R>(block_rows, step); }, columns);
    store_panel(columns, kGroupColumns, {rows.begin + r, rows.begin + r + 1}, cols, scale, out,
                out_stride);
  }
}

// One slice of the block: rows of the tile against all output features. masks[r] holds those of a
// row, output features kMaskBytes apart.
template <int Rows, bool kInput, bool kWeight, bool kFinite, class R>
void gradient_tile(const R* x, const R* w, const R* grad, uint8_t* const* masks, int64_t outs,
                   int first_step, R* d_input, R* d_weight) {
  constexpr int kLanes = Vec<R>::kLanes;
  Vec<R> inputs[Rows][kGradSteps];
  Vec<R> sums[Rows][kGradSteps];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < kGradSteps; ++s) {
      inputs[r][s] = broadcast(R(0));
      if constexpr (kWeight) inputs[r][s] = load(x + r * kSliceColumns<R> + s * kLanes);
      sums[r][s] = broadcast(R(0));
    }
  }
  for (int64_t o = 0; o < outs; ++o) {
    Vec<R> weights[kGradSteps];
    Vec<R> d_weights[kGradSteps];
#pragma GCC unroll 8
    for (int s = 0; s < kGradSteps; ++s) {
      weights[s] = d_weights[s] = broadcast(R(0));
      if constexpr (kInput) weights[s] = load(w + o * kSliceColumns<R> + s * kLanes);
      if constexpr (kWeight) d_weights[s] = load(d_weight + o * kSliceColumns<R> + s * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      GroupMask<R> mask = load_mask<R>(masks[r] + o * kMaskBytes);
      const R* g = grad + (r * kGradOuts + o) * kGradCopies<R>;
#pragma GCC unroll 8
      for (int s = 0; s < kGradSteps; ++s) {
        add_gradients<kInput, kWeight, kFinite>(mask, first_step + s, g, weights[s], inputs[r][s],
                                                sums[r][s], d_weights[s]);
      }
      store_mask(masks[r] + o * kMaskBytes, mask);
    }
#pragma GCC unroll 8
    for (int s = 0; s < kGradSteps && kWeight; ++s) {
      store(d_weight + o * kSliceColumns<R> + s * kLanes, d_weights[s]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows && kInput; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < kGradSteps; ++s) {
      R* out = d_input + r * kSliceColumns<R> + s * kLanes;
      store(out, load(out) + sums[r][s]);
    }
  }
}

template <class T>
struct BackwardScratch {
  BackwardScratch(ScratchCursor& cursor, Range outs)
      : x(cursor.take<Real<T>>(kGradSpan * kGroupColumns)),
        d_input(cursor.take<Real<T>>(kGradSpan * kGroupColumns)),
        w(cursor.take<Real<T>>(kGradPanelOuts * kGroupColumns)),
        grad(cursor.take<Real<T>>(kGradRows * kGradOuts * kGradCopies<Real<T>>)),
        panel_d_weight(cursor.take<Real<T>>(kGradPanelOuts * kGroupColumns)),
        d_weight(cursor.take<Real<T>>(round_up(outs.size(), kGradPanelOuts) * kGroupColumns)),
        bits(cursor.take<uint32_t>(kGradRows * kGradPanelOuts * kGroupWords)),
        masks(cursor.take<uint8_t>(kGradRows * kGradOuts * kMaskBytes)) {}
  Real<T>* x;
  Real<T>* d_input;
  Real<T>* w;
  Real<T>* grad;
  Real<T>* panel_d_weight;
  Real<T>* d_weight;
  uint32_t* bits;
  uint8_t* masks;
};

// All slices of one block.
template <bool kInput, bool kWeight, bool kFinite, class R>
void gradient_block(const R* x, const R* w, const R* grad, uint8_t* const* masks, int64_t rows,
                    int64_t outs, R* d_input, R* d_weight) {
  for (int64_t c = 0; c < kGroupColumns; c += kSliceColumns<R>) {
    const int step = static_cast<int>(c / Vec<R>::kLanes);
    const int64_t of_outs = slice_row<R>(kGradOuts, 0, c);
    for (int64_t r = 0; r < rows; r += kGradTileRows) {
      const int64_t of_rows = slice_row<R>(kGradRows, r, c);
      with_constant<kGradTileRows>(rows - r, [&](auto count) {
        gradient_tile<decltype(count)::value, kInput, kWeight, kFinite>(
            x + of_rows, w + of_outs, grad + r * kGradOuts * kGradCopies<R>, masks + r, outs, step,
            d_input + of_rows, d_weight + of_outs);
      });
    }
  }
}

template <class R>
using GradientBlock = decltype(&gradient_block<true, true, true, R>);

template <bool kFinite, class R>
GradientBlock<R> gradient_block_for(bool input, bool weight) {
  if (input && weight) return gradient_block<true, true, kFinite, R>;
  if (input) return gradient_block<true, false, kFinite, R>;
  return gradient_block<false, true, kFinite, R>;
}

// The gradients of a block's rows, kGradCopies of each.
template <class T>
void pack_gradients(const MatrixView& matrix, Range rows, Range outs, Real<T>* panel) {
  using R = Real<T>;
  if constexpr (kGradCopies<R> == 1) {
    pack_panel<T>(matrix, rows, outs, rows.size(), kGradOuts, panel, kGradOuts);
  } else {
    R grad[kGradRows * kGradOuts];
    pack_panel<T>(matrix, rows, outs, rows.size(), kGradOuts, grad, kGradOuts);
    for (int64_t k = 0; k < rows.size() * kGradOuts; ++k) {
      store(panel + k * kGradCopies<R>, broadcast(grad[k]));
    }
  }
}

// The masks of one row in the memory in which they are advanced: packed bits as they are, or a
// copy.
template <class R>
uint8_t* row_masks(const uint8_t* bits, int64_t outs, uint8_t* space) {
  if constexpr (kMaskBytes == kGroupBytes) {
    return const_cast<uint8_t*>(bits);  // these are only read
  } else {
    for (int64_t o = 0; o < outs; ++o) {
      store_mask(space + o * kMaskBytes, expand_mask<R>(bits + o * kGroupBytes));
    }
    return space;
  }
}

// Both gradients of a panel of output features from a span of rows.
template <class T>
void backward_panel(const BackwardArgs& args, const BackwardScratch<T>& s, int64_t group,
                    Range span, Range panel, bool finite, Real<T>* d_weight) {
  using R = Real<T>;
  const bool weight = args.d_weight != nullptr;
  const GradientBlock<R> run =
      finite ? gradient_block_for<true, R>(args.d_input != nullptr, weight)
             : gradient_block_for<!kMasksOperands, R>(args.d_input != nullptr, weight);
  MaskBlock block(args.problem, s.bits);
  const Range groups = {group, group + 1};
  const Range drawn = {panel.begin, panel.begin + round_up(panel.size(), kStoredOutsMultiple)};
  const int64_t d_weights = round_up(panel.size(), kGradOuts) * kGroupColumns;
  int64_t summed = 0;
  for (int64_t n = span.begin; n < span.end; n += kGradRows) {
    const Range rows = {n, smaller(n + kGradRows, span.end)};
    const MaskBits bits = block.bits(rows, groups, drawn);
    const Range next_masks = block.to_come(smaller(rows.end + kGradRows, span.end));
    const uint8_t* row_bits[kGradRows];
    for (int64_t r = 0; r < rows.size(); ++r) row_bits[r] = bits.row(args.problem, n + r);
    for (int64_t o = panel.begin; o < panel.end; o += kGradOuts) {
      const Range outs = {o, smaller(o + kGradOuts, panel.end)};
      block.prefetch(next_masks, groups, outs);
      uint8_t* masks[kGradRows];
      for (int64_t r = 0; r < rows.size(); ++r) {
        masks[r] = row_masks<R>(row_bits[r] + (o - panel.begin) * kGroupBytes, outs.size(),
                                s.masks + r * kGradOuts * kMaskBytes);
      }
      pack_gradients<T>(args.grad_output, rows, outs, s.grad);
      const int64_t of_rows = (n - span.begin) * kGroupColumns;
      const int64_t of_outs = (o - panel.begin) * kGroupColumns;
      run(s.x + of_rows, s.w + of_outs, s.grad, masks, rows.size(), outs.size(),
          s.d_input + of_rows, s.panel_d_weight + of_outs);
    }
    if (!weight || (++summed < kSummedBlocks && rows.end < span.end)) continue;
    for (int64_t k = 0; k < d_weights; ++k) {
      d_weight[k] += s.panel_d_weight[k];
      s.panel_d_weight[k] = 0;
    }
    summed = 0;
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
    const int64_t padded = round_up(outs.size(), kGradOuts);
    for (int64_t k = 0; k < padded * kGroupColumns; ++k) s.d_weight[k] = 0;
    const int64_t panel = smaller(padded, kGradPanelOuts);
    for (int64_t k = 0; k < panel * kGroupColumns; ++k) s.panel_d_weight[k] = 0;
  }
  for (int64_t n = rows.begin; n < rows.end; n += kGradSpan) {
    const Range span = {n, smaller(n + kGradSpan, rows.end)};
    bool x_finite = true;
    if (args.d_weight != nullptr) {
      x_finite = pack_slices<T>(args.input, span, cols, kGradRows, s.x);
    }
    if (args.d_input != nullptr) {
      const int64_t padded = round_up(span.size(), kGradRows);
      for (int64_t k = 0; k < padded * kGroupColumns; ++k) s.d_input[k] = 0;
    }
    for (int64_t o = outs.begin; o < outs.end; o += kGradPanelOuts) {
      const Range panel = {o, smaller(o + kGradPanelOuts, outs.end)};
      bool finite = x_finite;
      if (args.d_input != nullptr) {
        finite &= pack_slices<T>(args.weight, panel, cols, kGradOuts, s.w);
      }
      backward_panel<T>(args, s, group, span, panel, finite,
                        s.d_weight + (o - outs.begin) * kGroupColumns);
    }
    if (args.d_input != nullptr) {
      store_slices(s.d_input, kGradRows, span, cols, scale, static_cast<T*>(args.d_input),
                   problem.in_features);
    }
  }
  if (args.d_weight != nullptr) {
    store_slices(s.d_weight, kGradOuts, outs, cols, scale, static_cast<T*>(args.d_weight),
                 problem.in_features);
  }
}

}  // namespace
}  // namespace fused_dropout::dropconnect
