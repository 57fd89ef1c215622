// Concrete dropout: out = in * keep / (1 - p) with the relaxed mask
//
//   keep = 1 - z = 1 / (1 + exp((logit p + logit u) / t)),   logit x = log(x / (1 - x)).
//
// It is computed as out = in * (e^-m + e^(l - m)) / (e^-m + e^(y - m)) with l = logit p, m = max(l,
// 0) and y = (l + logit u) / t: 1 / (1 - p) = 1 + e^l may be too large for a float.
//
// With a = keep / (1 - p), d a / d logit_p = a (p - z / t).
//
// Where dimensions share the mask, a and p - z / t are computed once for each of its elements, and
// multiplied with the tensor's then.
#pragma once

#include "../../concrete_dropout.h"
#include "../noise_blocks.h"

namespace fused_dropout::concrete_dropout {
namespace {

template <class R>
struct Reals {
  R logit, p, inverse_temperature;
  R shift;      // m
  R one;        // e^-m
  R numerator;  // e^-m + e^(l - m)
  explicit Reals(const Rate& rate)
      : logit(static_cast<R>(rate.logit)),
        p(static_cast<R>(rate.p)),
        inverse_temperature(static_cast<R>(rate.inverse_temperature)) {
    const double m = rate.logit > 0 ? rate.logit : 0.0;
    shift = static_cast<R>(m);
    one = static_cast<R>(__builtin_exp(-m));
    numerator = static_cast<R>(__builtin_exp(-m) + __builtin_exp(rate.logit - m));
  }
};

// e^-m z / (1 - z) of a block. 1 - u is exact.
template <class R>
FUSED_DROPOUT_INLINE void dropped_odds(const Reals<R>& rate, const uint32_t* words, R* odds) {
  for (int k = 0; k < kGroupColumns; ++k) {
    const R u = uniform_of_word<R>(words[k]);
    const R y = (rate.logit + log_of(u / (R(1) - u))) * rate.inverse_temperature;
    odds[k] = exp_of(y - rate.shift);
  }
}

template <class T>
void apply(const NoiseRun& run, const Rate& rate, const void* in, void* out) {
  using R = Real<T>;
  const Reals<R> reals(rate);
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R x[kGroupColumns], odds[kGroupColumns];
    read_block<T>(in, first, count, x);
    dropped_odds(reals, words, odds);
    for (int k = 0; k < kGroupColumns; ++k) x[k] *= reals.numerator / (reals.one + odds[k]);
    write_block<T>(x, first, count, out);
  });
}

// The sum of a block, halves added to halves: in an order that depends on nothing.
template <class R>
FUSED_DROPOUT_INLINE R block_sum(R* x) {
  for (int half = kGroupColumns / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) x[k] += x[k + half];
  }
  return x[0];
}

// a and p - z / t of a block.
template <class R>
FUSED_DROPOUT_INLINE void factors_of_block(const Reals<R>& rate, const uint32_t* words, R* factor,
                                           R* slope) {
  R odds[kGroupColumns];
  dropped_odds(rate, words, odds);
  for (int k = 0; k < kGroupColumns; ++k) {
    const R inverse = R(1) / (rate.one + odds[k]);
    factor[k] = inverse * rate.numerator;
    slope[k] = rate.p - odds[k] * inverse * rate.inverse_temperature;
  }
}

// grad becomes grad * factor; returns the sum of x * grad * factor * slope.
template <class R>
FUSED_DROPOUT_INLINE double multiply_block(const R* factor, const R* slope, R* grad, R* x) {
  for (int k = 0; k < kGroupColumns; ++k) {
    grad[k] *= factor[k];
    x[k] *= grad[k] * slope[k];
  }
  return static_cast<double>(block_sum(x));
}

template <class T>
double backward(const NoiseRun& run, const Rate& rate, const void* grad, const void* in,
                void* d_in) {
  using R = Real<T>;
  const Reals<R> reals(rate);
  double d_logit = 0;
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R g[kGroupColumns], x[kGroupColumns], factor[kGroupColumns], slope[kGroupColumns];
    read_block<T>(grad, first, count, g);
    read_block<T>(in, first, count, x);
    factors_of_block(reals, words, factor, slope);
    d_logit += multiply_block(factor, slope, g, x);
    write_block<T>(g, first, count, d_in);
  });
  return d_logit;
}

template <class T>
void factors(const NoiseRun& run, const Rate& rate, void* factors, void* slopes) {
  using R = Real<T>;
  const Reals<R> reals(rate);
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R factor[kGroupColumns], slope[kGroupColumns];
    factors_of_block(reals, words, factor, slope);
    write_block<R>(factor, first, count, factors);
    if (slopes != nullptr) write_block<R>(slope, first, count, slopes);
  });
}

// Calls body(first, count) for the blocks of `total` elements.
template <class Body>
FUSED_DROPOUT_INLINE void for_blocks_of(int64_t total, Body body) {
  for (int64_t first = 0; first < total; first += kGroupColumns) {
    const int64_t left = total - first;
    body(first, left < kGroupColumns ? left : int64_t{kGroupColumns});
  }
}

template <class T>
void multiply(const void* in, const void* factors, int64_t total, void* out) {
  using R = Real<T>;
  for_blocks_of(total, [&](int64_t first, int64_t count) {
    R x[kGroupColumns], factor[kGroupColumns];
    read_block<T>(in, first, count, x);
    read_block<R>(factors, first, count, factor);
    for (int k = 0; k < kGroupColumns; ++k) x[k] *= factor[k];
    write_block<T>(x, first, count, out);
  });
}

template <class T>
double multiply_and_sum(const void* grad, const void* in, const void* factors, const void* slopes,
                        int64_t total, void* d_in) {
  using R = Real<T>;
  double d_logit = 0;
  for_blocks_of(total, [&](int64_t first, int64_t count) {
    R g[kGroupColumns], x[kGroupColumns], factor[kGroupColumns], slope[kGroupColumns];
    read_block<T>(grad, first, count, g);
    read_block<T>(in, first, count, x);
    read_block<R>(factors, first, count, factor);
    read_block<R>(slopes, first, count, slope);
    d_logit += multiply_block(factor, slope, g, x);
    write_block<T>(g, first, count, d_in);
  });
  return d_logit;
}

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {{apply<float>, apply<BFloat16>, apply<Float16>, apply<double>},
          {backward<float>, backward<BFloat16>, backward<Float16>, backward<double>},
          {factors<float>, factors<BFloat16>, factors<Float16>, factors<double>},
          {multiply<float>, multiply<BFloat16>, multiply<Float16>, multiply<double>},
          {multiply_and_sum<float>, multiply_and_sum<BFloat16>, multiply_and_sum<Float16>,
           multiply_and_sum<double>}};
}

}  // namespace fused_dropout::concrete_dropout

FUSED_DROPOUT_INSTANTIATE(fused_dropout::concrete_dropout::Kernels);
