// out = residual + dropout(activation(in + bias)), and its gradients, in blocks of a group's 128
// elements: a block is drawn, computed and written before the next is read.
//
// Floor: the bytes of in, residual and out; backward, of grad, in and d_input. gelu takes 0.5 to 1
// ns an element and core on AVX-512, as long as memory takes for the 12 bytes.
#pragma once

#include "../../bias_act_dropout_add.h"
#include "../activations.h"
#include "../affine.h"
#include "../blocks.h"
#include "../draw_groups.h"

namespace fused_dropout::bias_act_dropout_add {
namespace {

// Calls f(words, done, count) for every block of `total` elements: its four words of mask bits, the
// elements before it and in it.
template <class F>
FUSED_DROPOUT_INLINE void for_drawn_blocks(const MaskRule& rule, int64_t first_group, int64_t total,
                                           F f) {
  uint32_t bits[kDrawnGroups * kGroupWords];
  const int64_t groups = group_count(total);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t k = g % kDrawnGroups;
    if (k == 0) {
      const int64_t left = groups - g;
      draw_groups(rule, static_cast<uint64_t>(first_group + g), 1,
                  left < kDrawnGroups ? left : kDrawnGroups, bits);
    }
    const int64_t done = g * kGroupColumns;
    const int64_t left = total - done;
    f(bits + k * kGroupWords, done, left < kGroupColumns ? left : kGroupColumns);
  }
}

// Calls f(k, column, length) for the pieces of a block that lie in one row each: elements
// k .. k + length - 1 of the block have columns column .. column + length - 1.
template <class F>
FUSED_DROPOUT_INLINE void for_row_pieces(int64_t features, int64_t column, int64_t count, F f) {
  for (int64_t k = 0; k < count; column = 0) {
    const int64_t in_row = features - column;
    const int64_t length = in_row < count - k ? in_row : count - k;
    f(k, column, length);
    k += length;
  }
}

// The column one block further on. Blocks may be longer than rows.
FUSED_DROPOUT_INLINE int64_t next_column(int64_t column, int64_t features) {
  column += kGroupColumns;
  return column < features ? column : column % features;
}

template <class T>
FUSED_DROPOUT_INLINE void add_block(const T* in, int64_t count, Real<T>* x) {
  Real<T> y[kGroupColumns];
  read_block<T>(in, 0, count, y);
  for (int k = 0; k < kGroupColumns; ++k) x[k] += y[k];
}

// x += bias, from `column` on.
template <class T>
FUSED_DROPOUT_INLINE void add_bias(const T* bias, int64_t features, int64_t column, int64_t count,
                                   Real<T>* x) {
  if (features - column >= kGroupColumns && count == kGroupColumns) {
    add_block(bias + column, kGroupColumns, x);
    return;
  }
  Real<T> b[kGroupColumns] = {};
  for_row_pieces(features, column, count, [&](int64_t k, int64_t first, int64_t length) {
    widen_row(bias + first, 1, length, b + k);
  });
  for (int k = 0; k < kGroupColumns; ++k) x[k] += b[k];
}

// sums += x, from `column` on.
template <class R>
FUSED_DROPOUT_INLINE void add_to_sums(const R* x, int64_t features, int64_t column, int64_t count,
                                      R* sums) {
  if (features - column >= kGroupColumns && count == kGroupColumns) {
    for (int k = 0; k < kGroupColumns; ++k) sums[column + k] += x[k];
    return;
  }
  for_row_pieces(features, column, count, [&](int64_t k, int64_t first, int64_t length) {
    for (int64_t i = 0; i < length; ++i) sums[first + i] += x[k + i];
  });
}

template <class T>
const T* at_element(const void* base, int64_t k) {
  return base == nullptr ? nullptr : static_cast<const T*>(base) + k;
}

template <class R>
AffineVectors<R> times(double scale) {
  return AffineVectors<R>({scale, 0, 0});
}

// x times the scale; 0 where an element is dropped, whatever the activation made of it.
template <class R>
FUSED_DROPOUT_INLINE void drop(const AffineVectors<R>& scaled, const uint32_t* words, R* x) {
  apply_block<R>(scaled, words, x, nullptr, x);
}

template <class T>
void forward(const Settings& settings, const ForwardRun& run, int64_t first_group) {
  const auto scaled = times<Real<T>>(settings.scale);
  const T* const bias = static_cast<const T*>(run.bias);
  int64_t column = first_group * kGroupColumns % settings.features;
  for_drawn_blocks(settings.rule, first_group, run.count,
                   [&](const uint32_t* words, int64_t done, int64_t count) {
                     Real<T> x[kGroupColumns];
                     read_block<T>(run.in, done, count, x);
                     if (bias != nullptr) add_bias(bias, settings.features, column, count, x);
                     activate_block(settings.activation, x);
                     drop(scaled, words, x);
                     const T* const residual = at_element<T>(run.residual, done);
                     if (residual != nullptr) add_block(residual, count, x);
                     write_block<T>(x, done, count, run.out);
                     column = next_column(column, settings.features);
                   });
}

template <class T>
void backward(const Settings& settings, const BackwardRun& run, int64_t first_group) {
  const auto scaled = times<Real<T>>(settings.scale);
  const T* const bias = static_cast<const T*>(run.bias);
  Real<T>* const sums = static_cast<Real<T>*>(run.sums);
  int64_t column = first_group * kGroupColumns % settings.features;
  int64_t sums_column = 0;
  for_drawn_blocks(settings.rule, first_group, run.count,
                   [&](const uint32_t* words, int64_t done, int64_t count) {
                     Real<T> grad[kGroupColumns];
                     read_block<T>(run.grad, done, count, grad);
                     if (run.in != nullptr) {
                       Real<T> x[kGroupColumns];
                       read_block<T>(run.in, done, count, x);
                       if (bias != nullptr) add_bias(bias, settings.features, column, count, x);
                       times_slopes_block(settings.activation, x, grad);
                     }
                     drop(scaled, words, grad);
                     if (sums != nullptr) {
                       add_to_sums(grad, settings.features, sums_column, count, sums);
                       sums_column = next_column(sums_column, settings.features);
                     }
                     write_block<T>(grad, done, count, run.d_input);
                     column = next_column(column, settings.features);
                   });
}

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {{forward<float>, forward<BFloat16>, forward<Float16>, forward<double>},
          {backward<float>, backward<BFloat16>, backward<Float16>, backward<double>}};
}

}  // namespace fused_dropout::bias_act_dropout_add

FUSED_DROPOUT_INSTANTIATE(fused_dropout::bias_act_dropout_add::Kernels);
