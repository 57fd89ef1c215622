// DropConnect's forward product on one core.
//
//   output[n, o] = scale * sum_i M[n, o, i] weight[o, i] input[n, i]
//
// A tile of kForwardRows x kForwardOuts sums stays in registers over a panel of columns. Floor: one
// multiply-add for every connection, and what brings its mask bit. For each vector of them, beside
// 0.4 (AVX-512) or 0.5 (AVX2) loads of inputs and weights:
//   AVX-512  2 instructions: a load into a mask register (a load and a uop for port 5 on Intel) and
//            the masked FMA (ports 0 and 5). Bound by these ports: 1 cycle for 16 multiply-adds on
//            Ice Lake and Sapphire Rapids. Zen 4 takes 1 cycle for an FMA of 512 bits alone.
//   AVX2     3 instructions: masked load, FMA, addition. Intel (Skylake to Golden Cove) needs a uop
//            for ports 0, 1, 5 for each of them: 1 cycle for 8. Zen 2 to 4 need none for the masked
//            load, and have 2 pipes for FMAs, 3 or 4 for additions: 0.75 cycles, by their 2 loads a
//            cycle.
// The dense product takes half a cycle wherever a core has two FMA pipes of the vector's width.
#pragma once

#include "../../common/with_constant.h"
#include "../dropconnect.h"
#include "mask_bits.h"

namespace fused_dropout::dropconnect {
namespace {

constexpr int64_t kPanelColumns = 1024;               // columns of a panel
constexpr int64_t kPanelStride = kPanelColumns + 16;  // keeps rows off each other's cache sets
constexpr int64_t kPanelOuts = 32;  // output features whose masks are drawn at once

// sums[r][k] += dot(x[r], w[k]) over `groups` groups of columns, under the mask.
template <int Rows, bool kFinite, class R>
void forward_tile(const R* x, const R* w, const uint8_t* const* row_bits, int64_t first_byte,
                  int64_t group_bytes, int64_t groups, R* sums, int64_t sums_stride) {
  constexpr int kLanes = Vec<R>::kLanes;
  constexpr int kSums = Rows * kForwardOuts;
  Vec<R> acc[kSums];
#pragma GCC unroll 24
  for (int k = 0; k < kSums; ++k) acc[k] = broadcast(R(0));
  for (int64_t g = 0; g < groups; ++g) {
    GroupMask<R> masks[kSums];
#pragma GCC unroll 24
    for (int k = 0; k < kSums; ++k) {
      masks[k] = expand_mask<R>(row_bits[k / kForwardOuts] + first_byte + g * group_bytes +
                                k % kForwardOuts * kGroupBytes);
    }
#pragma GCC unroll 8
    for (int step = 0; step < kGroupColumns / kLanes; ++step, x += kLanes, w += kLanes) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Vec<R> inputs = load(x + r * kPanelStride);
#pragma GCC unroll 4
        for (int o = 0; o < kForwardOuts; ++o) {
          const int k = r * kForwardOuts + o;
          acc[k] = add_kept<kFinite>(masks[k], step, w + o * kPanelStride, inputs, acc[k]);
        }
      }
    }
  }
  constexpr int kPadded = (kSums + 3) / 4 * 4;
  R lanes[kPadded][kLanes] = {};
#pragma GCC unroll 24
  for (int k = 0; k < kSums; ++k) store(lanes[k], acc[k]);
  R totals[kPadded] = {};
  for (int k = 0; k < kPadded; k += 4) {
    const Vec<R> four[4] = {load(lanes[k]), load(lanes[k + 1]), load(lanes[k + 2]),
                            load(lanes[k + 3])};
    add_sums4(totals + k, four);
  }
  for (int k = 0; k < kSums; ++k) {
    sums[k / kForwardOuts * sums_stride + k % kForwardOuts] += totals[k];
  }
}

template <class T>
struct ForwardScratch {
  explicit ForwardScratch(ScratchCursor& cursor)
      : x(cursor.take<Real<T>>(kForwardBlockRows * kPanelStride)),
        w(cursor.take<Real<T>>(kPanelOuts * kPanelStride)),
        sums(cursor.take<Real<T>>(kForwardBlockRows * kForwardBlockOuts)),
        bias(cursor.take<Real<T>>(kForwardBlockOuts)),
        bits(cursor.take<uint32_t>(kForwardRows * (kPanelColumns / kGroupColumns) * kPanelOuts *
                                   kGroupWords)) {}
  Real<T>* x;
  Real<T>* w;
  Real<T>* sums;  // [rows][kForwardBlockOuts]
  Real<T>* bias;
  uint32_t* bits;
};

// One panel: kPanelOuts output features against all rows of the block.
template <bool kFinite, class T>
void forward_panel(const DropConnectProblem& problem, const ForwardScratch<T>& s, Range rows,
                   Range outs, Range groups, int64_t sums_offset) {
  MaskBlock block(problem, s.bits);
  const Range drawn = {outs.begin, outs.begin + round_up(outs.size(), kStoredOutsMultiple)};
  for (int64_t r = rows.begin; r < rows.end; r += kForwardRows) {
    const Range tile = {r, smaller(r + kForwardRows, rows.end)};
    const MaskBits bits = block.bits(tile, groups, drawn);
    const Range next_masks = block.to_come(smaller(tile.end + kForwardRows, rows.end));
    const uint8_t* row_bits[kForwardRows] = {};
    for (int64_t n = r; n < tile.end; ++n) row_bits[n - r] = bits.row(problem, n);
    const Real<T>* x = s.x + (r - rows.begin) * kPanelStride;
    Real<T>* sums = s.sums + (r - rows.begin) * kForwardBlockOuts + sums_offset;
    for (int64_t o = 0; o < outs.size(); o += kForwardOuts) {
      block.prefetch(next_masks, groups, {outs.begin + o, outs.begin + o + kForwardOuts});
      with_constant<kForwardRows>(tile.size(), [&](auto count) {
        constexpr int kRows = decltype(count)::value;
        forward_tile<kRows, kFinite>(x, s.w + o * kPanelStride, row_bits, o * kGroupBytes,
                                     bits.group_bytes, groups.size(), sums + o, kForwardBlockOuts);
      });
    }
  }
}

// sums[k] += bias[k] for the output features that are kept. Without a branch: each would be
// mispredicted half the time.
template <class R>
void add_kept_bias(const uint32_t* bits, Range outs, const R* bias, R* sums) {
  for (int64_t o = outs.begin; o < outs.end;) {
    const uint32_t word = bits[o / 32] >> (o % 32);
    const int count = static_cast<int>(smaller(32 - o % 32, outs.end - o));
    for (int k = 0; k < count; ++k) sums[k] += word >> k & 1 ? bias[k] : R(0);
    o += count, bias += count, sums += count;
  }
}

// output = scale * (sums + kept bias)
template <class T>
void finish_forward(const ForwardArgs& args, Range rows, Range outs, const ForwardScratch<T>& s) {
  const DropConnectProblem& problem = args.problem;
  if (args.bias != nullptr) {
    const T* bias = static_cast<const T*>(args.bias) + outs.begin * args.bias_stride;
    widen_row(bias, args.bias_stride, outs.size(), s.bias);
    const int64_t mask_words = group_count(problem.out_features) * kGroupWords;
    for (int64_t n = rows.begin; n < rows.end; ++n) {
      add_kept_bias(args.bias_bits + n / problem.rows_per_mask * mask_words, outs, s.bias,
                    s.sums + (n - rows.begin) * kForwardBlockOuts);
    }
  }
  store_panel(s.sums, kForwardBlockOuts, rows, outs, static_cast<Real<T>>(problem.scale),
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
    const bool finite = pack_steps<T>(args.input, rows, cols, rows.size(), s.x, kPanelStride);
    for (int64_t o = outs.begin; o < outs.end; o += kPanelOuts) {
      const Range panel = {o, smaller(o + kPanelOuts, outs.end)};
      pack_steps<T>(args.weight, panel, cols, round_up(panel.size(), kForwardOuts), s.w,
                    kPanelStride);
      if (finite || !kMasksOperands) {
        forward_panel<true, T>(problem, s, rows, panel, groups, o - outs.begin);
      } else {
        forward_panel<false, T>(problem, s, rows, panel, groups, o - outs.begin);
      }
    }
  }
  finish_forward<T>(args, rows, outs, s);
}

}  // namespace
}  // namespace fused_dropout::dropconnect
