// Mean and variance of DropConnect's pre-activations, in one pass over the weight:
//
//   mean[n, o] += w x and variance[n, o] += w^2 x^2 for w = weight[o, i], x = input[n, i]
//
// Floor: the bytes of the weight, where there are few rows; else two multiply-adds for every
// connection, twice those of the dense layer. A weight is loaded and squared once for a tile of 2
// rows x 2 output features (1 x 4 with one row), which are 8 sums in registers and 14 registers in
// all. For each vector of columns such a tile takes 8 multiply-adds, 2 squares and 6 loads: 5
// cycles with two pipes, 4 of which the multiply-adds need.
#pragma once

#include "../../../common/with_constant.h"
#include "../../dropconnect_moments.h"
#include "../panels.h"

namespace fused_dropout::dropconnect_moments {
namespace {

constexpr int64_t kPanelColumns = 512;  // of some rows, and of their squares: 4 KiB a row
constexpr int kTileRows = 2;
constexpr int kMostOuts = 4;  // of a tile with one row

template <class T>
void square(const MatrixView& matrix, Range rows, int64_t cols, void* wide, void* squares,
            int64_t stride) {
  using R = Real<T>;
  constexpr int kLanes = Vec<R>::kLanes;
  R* to = static_cast<R*>(squares);
  R* copy = wide == nullptr ? to : static_cast<R*>(wide);
  for (int64_t r = rows.begin; r < rows.end; ++r, to += stride, copy += stride) {
    pack_panel<T>(matrix, {r, r + 1}, {0, cols}, 1, stride, copy, stride);
    int64_t k = 0;
    for (; k + kLanes <= stride; k += kLanes) {
      const Vec<R> x = load(copy + k);
      store(to + k, x * x);
    }
    for (; k < stride; ++k) to[k] = copy[k] * copy[k];
  }
}

// Adds the sums of kRows rows and kOuts output features, over `count` columns, to what is at `mean`
// and `variance`, whose rows are out_features apart. `count` is a whole number of vectors.
template <int kRows, int kOuts, class T>
FUSED_DROPOUT_INLINE void add_tile(const T* const* weight, const Real<T>* wide,
                                   const Real<T>* squares, int64_t stride, int64_t count,
                                   int64_t out_features, Real<T>* mean, Real<T>* variance) {
  using R = Real<T>;
  constexpr int kLanes = Vec<R>::kLanes;
  constexpr int kSums = 4;  // kRows * kOuts, and unused ones
  static_assert(kRows * kOuts <= kSums);
  const Vec<R> zero = broadcast(R(0));
  Vec<R> means[kSums] = {zero, zero, zero, zero};
  Vec<R> variances[kSums] = {zero, zero, zero, zero};
  for (int64_t k = 0; k < count; k += kLanes) {
    Vec<R> w[kOuts], w2[kOuts];
#pragma GCC unroll 4
    for (int o = 0; o < kOuts; ++o) {
      w[o] = widen_vector(weight[o] + k);
      w2[o] = w[o] * w[o];
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec<R> x = load(wide + r * stride + k);
      const Vec<R> x2 = load(squares + r * stride + k);
#pragma GCC unroll 4
      for (int o = 0; o < kOuts; ++o) {
        means[r * kOuts + o] = multiply_add(w[o], x, means[r * kOuts + o]);
        variances[r * kOuts + o] = multiply_add(w2[o], x2, variances[r * kOuts + o]);
      }
    }
  }
  R totals[2][kSums] = {};
  add_sums4(totals[0], means);
  add_sums4(totals[1], variances);
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kOuts; ++o) {
      mean[r * out_features + o] += totals[0][r * kOuts + o];
      variance[r * out_features + o] += totals[1][r * kOuts + o];
    }
  }
}

// The columns `cols` of a weight's row: in place, or in `space` with zeros up to a whole vector.
template <class T>
FUSED_DROPOUT_INLINE const T* row_of_panel(const MatrixView& weight, int64_t row, Range cols,
                                           T* space) {
  constexpr int kLanes = Vec<Real<T>>::kLanes;
  const T* const data =
      static_cast<const T*>(weight.data) + row * weight.row_stride + cols.begin * weight.col_stride;
  if (weight.col_stride == 1 && cols.size() % kLanes == 0) return data;
  for (int64_t c = 0; c < cols.size(); ++c) space[c] = data[c * weight.col_stride];
  for (int64_t c = cols.size(); c < round_up(cols.size(), kLanes); ++c) space[c] = T{};
  return space;
}

// The sums of at most kMostOuts output features over the columns `cols`, for all rows.
template <class T>
void add_outs(const MomentsProblem& problem, const Real<T>* wide, const Real<T>* squares,
              int64_t stride, Range outs, Range cols, Real<T>* mean, Real<T>* variance) {
  T space[kMostOuts][kPanelColumns];
  const T* weight[kMostOuts] = {};
  for (int64_t o = outs.begin; o < outs.end; ++o) {
    weight[o - outs.begin] = row_of_panel(problem.weight, o, cols, space[o - outs.begin]);
  }
  const int64_t count = round_up(cols.size(), Vec<Real<T>>::kLanes);
  const auto add_rows = [&](auto rows, auto most_outs, int64_t row) {
    constexpr int kRows = decltype(rows)::value, kOuts = decltype(most_outs)::value;
    const int64_t first = row * stride + cols.begin;
    for (int64_t o = 0; o < outs.size(); o += kOuts) {
      with_constant<kOuts>(smaller(kOuts, outs.size() - o), [&](auto tile_outs) {
        const int64_t result = row * problem.out_features + outs.begin + o;
        add_tile<kRows, decltype(tile_outs)::value>(weight + o, wide + first, squares + first,
                                                    stride, count, problem.out_features,
                                                    mean + result, variance + result);
      });
    }
  };
  int64_t row = 0;
  for (; row + kTileRows <= problem.rows; row += kTileRows) {
    add_rows(std::integral_constant<int, kTileRows>{},
             std::integral_constant<int, kMostOuts / kTileRows>{}, row);
  }
  if (row < problem.rows) {
    add_rows(std::integral_constant<int, 1>{}, std::integral_constant<int, kMostOuts>{}, row);
  }
}

template <class T>
void finish_outs(const MomentsProblem& problem, Range rows, Range outs, Real<T>* mean,
                 Real<T>* variance) {
  const T* const bias = static_cast<const T*>(problem.bias);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t o = outs.begin; o < outs.end; ++o) {
      const int64_t k = r * problem.out_features + o;
      const Real<T> b = bias == nullptr ? Real<T>(0) : widen(bias[o * problem.bias_stride]);
      const Moments<Real<T>> result = finished<Real<T>>(problem, {mean[k], variance[k]}, b);
      mean[k] = result.mean;
      variance[k] = result.variance;
    }
  }
}

template <class T>
void apply(const MomentsProblem& problem, const void* wide, const void* squares, int64_t stride,
           Range outs, void* mean, void* variance) {
  using R = Real<T>;
  R* const means = static_cast<R*>(mean);
  R* const variances = static_cast<R*>(variance);
  for (int64_t r = 0; r < problem.rows; ++r) {
    for (int64_t o = outs.begin; o < outs.end; ++o) {
      means[r * problem.out_features + o] = 0;
      variances[r * problem.out_features + o] = 0;
    }
  }
  for (int64_t c = 0; c < problem.in_features; c += kPanelColumns) {
    const Range cols = {c, smaller(c + kPanelColumns, problem.in_features)};
    for (int64_t o = outs.begin; o < outs.end; o += kMostOuts) {
      add_outs<T>(problem, static_cast<const R*>(wide), static_cast<const R*>(squares), stride,
                  {o, smaller(o + kMostOuts, outs.end)}, cols, means, variances);
    }
  }
  finish_outs<T>(problem, {0, problem.rows}, outs, means, variances);
}

template <class T>
void finish(const MomentsProblem& problem, Range rows, void* mean, void* variance) {
  finish_outs<T>(problem, rows, {0, problem.out_features}, static_cast<Real<T>*>(mean),
                 static_cast<Real<T>*>(variance));
}

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {{square<float>, square<BFloat16>, square<Float16>, square<double>},
          {apply<float>, apply<BFloat16>, apply<Float16>, apply<double>},
          {finish<float>, finish<BFloat16>, finish<Float16>, finish<double>}};
}

}  // namespace fused_dropout::dropconnect_moments

FUSED_DROPOUT_INSTANTIATE(fused_dropout::dropconnect_moments::Kernels);
