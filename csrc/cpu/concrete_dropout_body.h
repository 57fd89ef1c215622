// Concrete dropout: out = in * keep / (1 - p) with the relaxed mask
//
//   keep = 1 - z = 1 / (1 + exp((logit p + logit u) / t)),   logit x = log(x / (1 - x)).
//
// With a = keep / (1 - p), d a / d logit_p = a (p - z / t).
#pragma once

#include "noise_body.h"

namespace fused_dropout {
namespace {

template <class R>
struct ConcreteReals {
  R logit, p, scale, inverse_temperature;
  explicit ConcreteReals(const ConcreteRate& rate)
      : logit(static_cast<R>(rate.logit)),
        p(static_cast<R>(rate.p)),
        scale(static_cast<R>(rate.scale)),
        inverse_temperature(static_cast<R>(rate.inverse_temperature)) {}
};

// z / (1 - z) of a block. 1 - u is exact.
template <class R>
FUSED_DROPOUT_INLINE void dropped_odds(const ConcreteReals<R>& rate, const uint32_t* words,
                                       R* odds) {
  for (int k = 0; k < kGroupColumns; ++k) {
    const R u = uniform_of_word<R>(words[k]);
    odds[k] = exp_of((rate.logit + log_of(u / (R(1) - u))) * rate.inverse_temperature);
  }
}

template <class T>
void apply_concrete_dropout(const NoiseRun& run, const ConcreteRate& rate, const void* in,
                            void* out) {
  using R = Real<T>;
  const ConcreteReals<R> reals(rate);
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R x[kGroupColumns], odds[kGroupColumns];
    read_block<T>(in, first, count, x);
    dropped_odds(reals, words, odds);
    for (int k = 0; k < kGroupColumns; ++k) x[k] *= reals.scale / (R(1) + odds[k]);
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
double concrete_dropout_backward(const NoiseRun& run, const ConcreteRate& rate, const void* grad,
                                 const void* in, void* d_in) {
  using R = Real<T>;
  const ConcreteReals<R> reals(rate);
  double d_logit = 0;
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R g[kGroupColumns], x[kGroupColumns], odds[kGroupColumns];
    read_block<T>(grad, first, count, g);
    read_block<T>(in, first, count, x);
    dropped_odds(reals, words, odds);
    for (int k = 0; k < kGroupColumns; ++k) {
      const R keep = R(1) / (R(1) + odds[k]);
      const R drop = odds[k] * keep;
      g[k] *= keep * reals.scale;
      x[k] *= g[k] * (reals.p - drop * reals.inverse_temperature);
    }
    write_block<T>(g, first, count, d_in);
    d_logit += static_cast<double>(block_sum(x));
  });
  return d_logit;
}

ConcreteDropoutKernels make_concrete_dropout_kernels() {
  return {{apply_concrete_dropout<float>, apply_concrete_dropout<BFloat16>,
           apply_concrete_dropout<Float16>, apply_concrete_dropout<double>},
          {concrete_dropout_backward<float>, concrete_dropout_backward<BFloat16>,
           concrete_dropout_backward<Float16>, concrete_dropout_backward<double>}};
}

}  // namespace
}  // namespace fused_dropout
