// Concrete dropout: out = in * keep / (1 - p) with the relaxed mask
//
//   keep = 1 - z = 1 / (1 + exp((logit p + logit u) / t)),   logit x = log(x / (1 - x)).
//
// It is computed as out = in * (e^-m + e^(l - m)) / (e^-m + e^(y - m)) with l = logit p, m = max(l,
// 0) and y = (l + logit u) / t: 1 / (1 - p) = 1 + e^l may be too large for a float.
//
// With a = keep / (1 - p), d a / d logit_p = a (p - z / t).
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

template <class T>
double backward(const NoiseRun& run, const Rate& rate, const void* grad, const void* in,
                void* d_in) {
  using R = Real<T>;
  const Reals<R> reals(rate);
  double d_logit = 0;
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R g[kGroupColumns], x[kGroupColumns], odds[kGroupColumns];
    read_block<T>(grad, first, count, g);
    read_block<T>(in, first, count, x);
    dropped_odds(reals, words, odds);
    for (int k = 0; k < kGroupColumns; ++k) {
      const R inverse = R(1) / (reals.one + odds[k]);
      const R drop = odds[k] * inverse;
      g[k] *= inverse * reals.numerator;
      x[k] *= g[k] * (reals.p - drop * reals.inverse_temperature);
    }
    write_block<T>(g, first, count, d_in);
    d_logit += static_cast<double>(block_sum(x));
  });
  return d_logit;
}

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {{apply<float>, apply<BFloat16>, apply<Float16>, apply<double>},
          {backward<float>, backward<BFloat16>, backward<Float16>, backward<double>}};
}

}  // namespace fused_dropout::concrete_dropout

FUSED_DROPOUT_INSTANTIATE(fused_dropout::concrete_dropout::Kernels);
