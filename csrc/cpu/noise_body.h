// Noise for a block of 128 elements, and the blocks of a run: what the bodies of all ops on
// continuous noise start from.
//
// Like the other loops over blocks, these have no branches and become vector code. Cost on one core
// with AVX-512: 32 Philox calls a block, and for normals one logarithm, square root, sine and
// cosine for every two elements; see bench/gaussian_dropout.py for figures.
#pragma once

#include "conversions.h"
#include "elementary.h"
#include "mask_body.h"
#include "noise_kernels.h"

namespace fused_dropout {
namespace {

// The random words of the elements of a block.
FUSED_DROPOUT_INLINE void draw_words(const MaskRule& rule, const PhiloxKeys<Lanes>& keys,
                                     uint64_t block, uint32_t* words) {
  constexpr int kCalls = kGroupColumns / kNoiseWords;
  constexpr int kAtOnce = kPhiloxAtOnce * Lanes::kCount;
  Lanes first = group_lanes(block * kCalls, 1);
  for (int call = 0; call < kCalls; call += kAtOnce, first = add64(first, kAtOnce)) {
    Lanes calls[kPhiloxAtOnce];
    for (int b = 0; b < kPhiloxAtOnce; ++b) calls[b] = add64(first, b * Lanes::kCount);
    Bits drawn[kPhiloxAtOnce][1];
    draw_digits(rule, keys, calls, 0, drawn);
    for (int b = 0; b < kPhiloxAtOnce; ++b) {
      store_bits(words + (call + b * Lanes::kCount) * kNoiseWords, drawn[b][0]);
    }
  }
}

template <class R>
FUSED_DROPOUT_INLINE void uniforms_of_words(const uint32_t* words, R* u) {
  for (int k = 0; k < kGroupColumns; ++k) u[k] = uniform_of_word<R>(words[k]);
}

template <class R>
FUSED_DROPOUT_INLINE void normals_of_words(const uint32_t* words, R* z) {
  constexpr int kPairs = kGroupColumns / 2;
  R radius[kPairs];
  for (int k = 0; k < kPairs; ++k) radius[k] = R(-2) * log_of(uniform_of_word<R>(words[2 * k]));
  square_roots(radius, kPairs);
  for (int k = 0; k < kPairs; ++k) {
    const Turn<R> turn = turn_of_word<R>(words[2 * k + 1]);
    const R sine = sine_of_turn(turn.rest);
    const R cosine = cosine_of_turn(turn.rest);
    // A quarter turn makes the sine of the cosine, and minus the cosine of the sine.
    const bool swapped = (turn.quarters & 1) != 0;
    const R x = swapped ? sine : cosine;
    const R y = swapped ? cosine : sine;
    z[2 * k] = radius[k] * (((turn.quarters + 1) & 2) != 0 ? -x : x);
    z[2 * k + 1] = radius[k] * ((turn.quarters & 2) != 0 ? -y : y);
  }
}

// The elements of a block, of which `count` exist; the others are 0.
template <class T>
FUSED_DROPOUT_INLINE void read_block(const void* from, int64_t first, int64_t count, Real<T>* to) {
  const T* in = static_cast<const T*>(from) + first;
  if (count == kGroupColumns) {
    widen_row(in, 1, kGroupColumns, to);
  } else {
    for (int k = 0; k < kGroupColumns; ++k) to[k] = 0;
    widen_row(in, 1, count, to);
  }
}

template <class T>
FUSED_DROPOUT_INLINE void write_block(const Real<T>* from, int64_t first, int64_t count, void* to) {
  T* out = static_cast<T*>(to) + first;
  if (count == kGroupColumns) {
    narrow_row(from, kGroupColumns, out);
  } else {
    narrow_row(from, count, out);
  }
}

// Calls body(words, first, count) for every block of the run: its random words, its first element
// counted from the run's start, and how many of its elements exist.
template <class Body>
FUSED_DROPOUT_INLINE void for_each_block(const NoiseRun& run, Body body) {
  const PhiloxKeys<Lanes> keys = philox_keys<Lanes>(run.rule.key[0], run.rule.key[1], splat);
  uint32_t words[kGroupColumns];
  for (int64_t first = 0; first < run.count; first += kGroupColumns) {
    draw_words(run.rule, keys, run.first_block + static_cast<uint64_t>(first / kGroupColumns),
               words);
    const int64_t left = run.count - first;
    body(words, first, left < kGroupColumns ? left : int64_t{kGroupColumns});
  }
}

template <class R>
void uniforms(const NoiseRun& run, R* out) {
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R u[kGroupColumns];
    uniforms_of_words(words, u);
    write_block<R>(u, first, count, out);
  });
}

template <class R>
void normals(const NoiseRun& run, R* out) {
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R z[kGroupColumns];
    normals_of_words(words, z);
    write_block<R>(z, first, count, out);
  });
}

NoiseKernels make_noise_kernels() {
  return {uniforms<float>, uniforms<double>, normals<float>, normals<double>};
}

}  // namespace
}  // namespace fused_dropout
