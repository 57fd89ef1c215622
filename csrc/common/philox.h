// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
//
// One implementation for every target: `Word` is uint32_t for scalar and CUDA code, and a vector of
// counters for SIMD code (csrc/cpu/simd_*.h), which then supplies its own `multiply` and `xor3`.
#pragma once

#include <cstdint>

#include "macros.h"

namespace fused_dropout {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;

// The two halves of a 32 x 32 -> 64 bit product.
template <class Word>
struct Product {
  Word high;
  Word low;
};

// Halves taken from the registers by name: ptxas adds a 0 to each that is shifted down instead.
FUSED_DROPOUT_INLINE Product<uint32_t> multiply(uint32_t a, uint32_t b) {
  const uint64_t product = static_cast<uint64_t>(a) * b;
#if defined(__CUDA_ARCH__)
  Product<uint32_t> halves;
  asm("mov.b64 {%0, %1}, %2;" : "=r"(halves.low), "=r"(halves.high) : "l"(product));
  return halves;
#else
  return {static_cast<uint32_t>(product >> 32), static_cast<uint32_t>(product)};
#endif
}

FUSED_DROPOUT_INLINE uint32_t xor3(uint32_t a, uint32_t b, uint32_t c) { return a ^ b ^ c; }

constexpr int kPhiloxRounds = 10;

// The keys of all rounds, which the callers that draw many words work out once.
template <class Word>
struct PhiloxKeys {
  Word key0[kPhiloxRounds];
  Word key1[kPhiloxRounds];
};

// `splat` makes a Word of a 32-bit number.
template <class Word, class Splat>
FUSED_DROPOUT_INLINE PhiloxKeys<Word> philox_keys(uint32_t key0, uint32_t key1, Splat splat) {
  PhiloxKeys<Word> keys;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    keys.key0[round] = splat(key0 + round * kPhiloxWeyl0);
    keys.key1[round] = splat(key1 + round * kPhiloxWeyl1);
  }
  return keys;
}

// Rounds First, First + 1, ... of `Calls` counters, counted from 0. The calls advance in lockstep,
// so that one fills the time that another waits for its multiplications.
template <int First, int Calls, class Word>
FUSED_DROPOUT_INLINE void philox_rounds(Word (&counters)[Calls][4], const PhiloxKeys<Word>& keys) {
#pragma GCC unroll 10
  for (int round = First; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 8
    for (int call = 0; call < Calls; ++call) {
      Word(&c)[4] = counters[call];
      const Product<Word> a = multiply(c[0], kPhiloxMultiplier0);
      const Product<Word> b = multiply(c[2], kPhiloxMultiplier1);
      c[0] = xor3(b.high, c[1], keys.key0[round]);
      c[1] = b.low;
      c[2] = xor3(a.high, c[3], keys.key1[round]);
      c[3] = a.low;
    }
  }
}

// Replaces each counter by its random output.
template <int Calls, class Word>
FUSED_DROPOUT_INLINE void philox4x32_10(Word (&counters)[Calls][4], const PhiloxKeys<Word>& keys) {
  philox_rounds<0>(counters, keys);
}

}  // namespace fused_dropout
