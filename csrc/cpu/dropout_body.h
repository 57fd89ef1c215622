// Dropout: out = (kept ? scale * in + shift : fill) + residual, in blocks of a group's 128
// elements.
//
// The loops over a block have no branches, so that the compiler turns them into vector code for
// whatever instruction set the including translation unit has switched on. Floor: the bytes of in
// and out; drawing costs 0.1 ns per element at 16 digits and 0.006 ns at one (AVX-512, one core).
#pragma once

#include "bit_runs.h"
#include "conversions.h"
#include "dropout_kernels.h"
#include "mask_body.h"

namespace fused_dropout {
namespace {

constexpr int64_t kDrawnGroups = 32;  // at a time; their bits stay in level-1 cache

template <class R>
struct AffineReals {
  R scale, shift, fill;
  explicit AffineReals(const AffineMap& map)
      : scale(static_cast<R>(map.scale)),
        shift(static_cast<R>(map.shift)),
        fill(static_cast<R>(map.fill)) {}
};

// One of the two, without a branch that would keep the compiler from vector code.
FUSED_DROPOUT_INLINE float choose(bool first, float a, float b) {
  const uint32_t mask = first ? ~0u : 0u;
  return float_from_bits((bits_from_float(a) & mask) | (bits_from_float(b) & ~mask));
}
FUSED_DROPOUT_INLINE double choose(bool first, double a, double b) {
  const uint64_t mask = first ? ~uint64_t{0} : 0;
  uint64_t bits_a, bits_b;
  __builtin_memcpy(&bits_a, &a, sizeof a);
  __builtin_memcpy(&bits_b, &b, sizeof b);
  const uint64_t bits = (bits_a & mask) | (bits_b & ~mask);
  double chosen;
  __builtin_memcpy(&chosen, &bits, sizeof bits);
  return chosen;
}

// out[k] = scale * x[k] + shift where bit k of `words` is set, and fill elsewhere, which whatever
// stands in x, a NaN too, does not reach. `out` may be `x`.
template <class R>
FUSED_DROPOUT_INLINE void map_block(const AffineReals<R>& map, const uint32_t* words, const R* x,
                                    R* out) {
  static constexpr uint32_t kBit[32] = {
      1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
      1u << 8,  1u << 9,  1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
      1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
      1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};
  const bool shifted = map.shift != 0;  // adding 0 would turn -0 into 0
  for (int w = 0; w < kGroupWords; ++w, x += 32, out += 32) {
    const uint32_t word = words[w];
    if (shifted) {
#pragma GCC ivdep
      for (int k = 0; k < 32; ++k) {
        out[k] = choose((word & kBit[k]) != 0, map.scale * x[k] + map.shift, map.fill);
      }
    } else {
#pragma GCC ivdep
      for (int k = 0; k < 32; ++k) {
        out[k] = choose((word & kBit[k]) != 0, map.scale * x[k], map.fill);
      }
    }
  }
}

template <class T>
constexpr bool kIsReal = false;
template <>
constexpr bool kIsReal<float> = true;
template <>
constexpr bool kIsReal<double> = true;

// One block, of which `count` elements exist.
template <class T>
FUSED_DROPOUT_INLINE void apply_block(const AffineReals<Real<T>>& map, const uint32_t* words,
                                      const T* in, const T* residual, T* out, int64_t count) {
  if constexpr (kIsReal<T>) {
    if (count == kGroupColumns && residual == nullptr) return map_block(map, words, in, out);
  }
  Real<T> x[kGroupColumns] = {};
  if (count == kGroupColumns) {
    widen_row(in, 1, kGroupColumns, x);
  } else {
    widen_row(in, 1, count, x);
  }
  map_block(map, words, x, x);
  if (residual != nullptr) {
    Real<T> r[kGroupColumns] = {};
    widen_row(residual, 1, count, r);
    for (int k = 0; k < kGroupColumns; ++k) x[k] += r[k];
  }
  if (count == kGroupColumns) {
    narrow_row(x, kGroupColumns, out);
  } else {
    narrow_row(x, count, out);
  }
}

// Calls words_of(block), the block's four words, for every block of the run.
template <class T, class WordsOf>
FUSED_DROPOUT_INLINE void apply_blocks(const AffineMap& map, const DropoutRun& run,
                                       WordsOf words_of) {
  constexpr int64_t kLine = 64;  // bytes
  constexpr int64_t kAhead = 2048;
  const AffineReals<Real<T>> reals(map);
  const T* in = static_cast<const T*>(run.in);
  const T* residual = static_cast<const T*>(run.residual);
  T* out = static_cast<T*>(run.out);
  for (int64_t done = 0; done < run.count; done += kGroupColumns) {
    const int64_t left = run.count - done;
    // These loops outrun the processor's own prefetching, which halves their speed on long runs.
    const char* const ahead = reinterpret_cast<const char*>(in + done) + kAhead;
    for (int64_t k = 0; k < kGroupColumns * static_cast<int64_t>(sizeof(T)); k += kLine) {
      __builtin_prefetch(ahead + k);
    }
    apply_block(reals, words_of(done / kGroupColumns), in + done,
                residual == nullptr ? nullptr : residual + done, out + done,
                left < kGroupColumns ? left : kGroupColumns);
  }
}

template <class T>
void draw_and_apply(const MaskRule& rule, const AffineMap& map, const DropoutRun& run,
                    uint64_t first_group) {
  uint32_t bits[kDrawnGroups * kGroupWords];
  const int64_t groups = group_count(run.count);
  apply_blocks<T>(map, run, [&](int64_t block) {
    const int64_t k = block % kDrawnGroups;
    if (k == 0) {
      const int64_t left = groups - block;
      draw_groups(rule, first_group + static_cast<uint64_t>(block), 1,
                  left < kDrawnGroups ? left : kDrawnGroups, bits);
    }
    return bits + k * kGroupWords;
  });
}

template <class T>
void apply(const AffineMap& map, const DropoutRun& run, const uint32_t* bits, int64_t first_bit) {
  uint32_t words[kGroupWords];
  apply_blocks<T>(map, run, [&](int64_t block) {
    const int64_t first = first_bit + block * kGroupColumns;
    const uint64_t halves[2] = {
        bits_from(bits, first),
        // A block's second half may lie past the bits.
        block * kGroupColumns + 64 < run.count ? bits_from(bits, first + 64) : 0};
    __builtin_memcpy(words, halves, sizeof words);
    return words;
  });
}

template <class T>
void apply_alike(const AffineMap& map, const DropoutRun& run, bool kept) {
  const uint32_t word = kept ? ~0u : 0u;
  const uint32_t words[kGroupWords] = {word, word, word, word};
  apply_blocks<T>(map, run, [&](int64_t) { return words; });
}

// The 64 x 64 bit matrix `a` mirrored at its diagonal: halves, quarters, ... of the rows swap their
// off-diagonal squares ("Hacker's Delight", section 7-3).
FUSED_DROPOUT_INLINE void transpose_64x64(uint64_t* a) {
  uint64_t mask = 0x00000000FFFFFFFFu;
  for (int half = 32; half != 0; half >>= 1, mask ^= mask << half) {
    for (int top = 0; top < 64; top += 2 * half) {
      for (int k = top; k < top + half; ++k) {
        const uint64_t swap = ((a[k] >> half) ^ a[k + half]) & mask;
        a[k + half] ^= swap;
        a[k] ^= swap << half;
      }
    }
  }
}

// Bits first, first + 1, ... become those of `value` where they were 0.
FUSED_DROPOUT_INLINE void put_bits(uint32_t* out, int64_t first, uint64_t value) {
  uint32_t* const word = out + first / 32;
  const int shift = static_cast<int>(first % 32);
  uint64_t low;
  __builtin_memcpy(&low, word, sizeof low);
  low |= value << shift;
  __builtin_memcpy(word, &low, sizeof low);
  if (shift != 0) word[2] |= static_cast<uint32_t>(value >> (64 - shift));
}

void transpose_bits(const uint32_t* bits, int64_t first_bit, int64_t col_stride, int64_t rows,
                    int64_t cols, uint32_t* out) {
  __builtin_memset(out, 0, ceil_div(rows * cols, 32) * sizeof *out);
  for (int64_t c = 0; c < cols; c += 64) {
    const int64_t count = cols - c < 64 ? cols - c : 64;
    uint64_t square[64] = {};
    for (int64_t k = 0; k < count; ++k) {
      square[k] = bits_from(bits, first_bit + (c + k) * col_stride);
    }
    transpose_64x64(square);
    for (int64_t r = 0; r < rows; ++r) put_bits(out, r * cols + c, square[r]);
  }
}

DropoutKernels make_dropout_kernels() {
  return {{draw_and_apply<float>, draw_and_apply<BFloat16>, draw_and_apply<Float16>,
           draw_and_apply<double>},
          {apply<float>, apply<BFloat16>, apply<Float16>, apply<double>},
          {apply_alike<float>, apply_alike<BFloat16>, apply_alike<Float16>, apply_alike<double>},
          transpose_bits};
}

}  // namespace
}  // namespace fused_dropout
