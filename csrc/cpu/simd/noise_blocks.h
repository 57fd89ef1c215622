// Noise for a block of 128 elements, and the blocks of a run: what the bodies of all ops on
// continuous noise start from.
//
// Like the other loops over blocks, these have no branches and become vector code. Cost on one core
// with AVX-512: 32 Philox calls a block, and for normals one logarithm, square root, sine and
// cosine for every two elements; see bench/gaussian_dropout.py for figures.
#pragma once

#include "../noise_run.h"
#include "blocks.h"
#include "draw_groups.h"
#include "elementary.h"

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
    Bits drawn[kPhiloxAtOnce];
    draw_calls(rule, keys, calls, drawn);
    for (int b = 0; b < kPhiloxAtOnce; ++b) {
      store_bits(words + (call + b * Lanes::kCount) * kNoiseWords, drawn[b]);
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

}  // namespace
}  // namespace fused_dropout
