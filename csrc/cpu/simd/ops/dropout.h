// Dropout: out = (kept ? scale * in + shift : fill) + residual, in blocks of a group's 128
// elements.
//
// Floor: the bytes of in and out; drawing costs 0.1 ns per element at 16 digits and 0.006 ns at one
// (AVX-512, one core).
#pragma once

#include "../../dropout.h"
#include "../affine.h"
#include "../draw_groups.h"
#include "../gather_columns.h"

namespace fused_dropout::dropout {
namespace {

constexpr int64_t kPrefetchBytes = 2048;  // ahead

// A block of which only `count` elements exist.
template <class T>
FUSED_DROPOUT_INLINE void apply_part(const AffineVectors<Real<T>>& map, const uint32_t* words,
                                     const T* in, const T* residual, T* out, int64_t count) {
  T block[kGroupColumns] = {};
  T addend[kGroupColumns] = {};
  __builtin_memcpy(block, in, count * sizeof(T));
  if (residual != nullptr) __builtin_memcpy(addend, residual, count * sizeof(T));
  apply_block<T>(map, words, block, residual != nullptr ? addend : nullptr, block);
  __builtin_memcpy(out, block, count * sizeof(T));
}

// These loops outrun the processor's own prefetching.
template <class T>
FUSED_DROPOUT_INLINE void prefetch_block(const T* in) {
  constexpr int64_t kLine = 64;
  const char* const ahead = reinterpret_cast<const char*>(in) + kPrefetchBytes;
  for (int64_t k = 0; k < kGroupColumns * static_cast<int64_t>(sizeof(T)); k += kLine) {
    __builtin_prefetch(ahead + k);
  }
}

// Calls words_of(block), the block's four words, for every block of the run.
template <class T, class WordsOf>
FUSED_DROPOUT_INLINE void apply_blocks(const AffineMap& map, const Run& run, WordsOf words_of) {
  const AffineVectors<Real<T>> vectors(map);
  const T* const in = static_cast<const T*>(run.in);
  const T* const residual = static_cast<const T*>(run.residual);
  T* const out = static_cast<T*>(run.out);
  const auto residual_at = [=](int64_t k) { return residual == nullptr ? nullptr : residual + k; };
  int64_t k = 0;
  for (; k + kGroupColumns <= run.count; k += kGroupColumns) {
    prefetch_block(in + k);
    apply_block<T>(vectors, words_of(k / kGroupColumns), in + k, residual_at(k), out + k);
  }
  if (k < run.count) {
    apply_part<T>(vectors, words_of(k / kGroupColumns), in + k, residual_at(k), out + k,
                  run.count - k);
  }
}

template <class T>
void draw_and_apply(const MaskRule& rule, const AffineMap& map, const Run& run,
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
void apply(const AffineMap& map, const Run& run, const uint32_t* bits) {
  apply_blocks<T>(map, run, [=](int64_t block) { return bits + block * kGroupWords; });
}

// bfloats that are all kept: a stochastic depth's or a channel's. Without bits to look at, two
// vectors at a time take two thirds of the instructions. Returns how many elements are done.
FUSED_DROPOUT_INLINE int64_t scale_all(const AffineMap& map, const Run& run, BFloat16*) {
  constexpr int64_t kStep = 2 * Vec<float>::kLanes;
  const Vec<float> scale = broadcast(static_cast<float>(map.scale));
  const uint16_t* const in = static_cast<const uint16_t*>(run.in);
  uint16_t* const out = static_cast<uint16_t*>(run.out);
  int64_t k = 0;
  for (; k + kStep <= run.count; k += kStep) scale_bfloats(in + k, scale, out + k);
  return k;
}
template <class T>
FUSED_DROPOUT_INLINE int64_t scale_all(const AffineMap&, const Run&, T*) {
  return 0;
}

template <class T>
void apply_alike(const AffineMap& map, const Run& run, bool kept) {
  if (!kept && run.residual == nullptr) {  // `in` need not be read
    T fill;
    narrow(static_cast<Real<T>>(map.fill), &fill);
    T* const out = static_cast<T*>(run.out);
    for (int64_t k = 0; k < run.count; ++k) out[k] = fill;
    return;
  }
  const uint32_t word = kept ? ~0u : 0u;
  const uint32_t words[kGroupWords] = {word, word, word, word};
  Run rest = run;
  if (kept && run.residual == nullptr && map.shift == 0) {
    const int64_t done = scale_all(map, run, static_cast<T*>(nullptr));
    rest = {static_cast<const T*>(run.in) + done, nullptr, static_cast<T*>(run.out) + done,
            run.count - done};
  }
  apply_blocks<T>(map, rest, [&](int64_t) { return words; });
}

// A row of at least one vector, whose bits are `bit` of the words.
template <class T>
FUSED_DROPOUT_INLINE void apply_row(const AffineVectors<Real<T>>& map, const Run& row,
                                    const uint32_t* words, uint32_t bit) {
  constexpr int kLanes = Vec<Real<T>>::kLanes;
  static_assert(kLanes <= kMinColumns, "a row holds a vector");
  const T* const in = static_cast<const T*>(row.in);
  const T* const residual = static_cast<const T*>(row.residual);
  T* const out = static_cast<T*>(row.out);
  const auto result = [&](int64_t c) {
    // What the processor would do, did gathering the bits not distract it.
    __builtin_prefetch(reinterpret_cast<const char*>(in + c) + kPrefetchBytes);
    Vec<Real<T>> x = map.mapped(widen_vector(in + c));
    x = select_words(words + c, bit, x, map.fill);
    return residual == nullptr ? x : x + widen_vector(residual + c);
  };
  const int64_t last = row.count - kLanes;
  int64_t c = 0;
  for (; c + kLanes <= last; c += kLanes) narrow_vector(result(c), out + c);
  // The last two may overlap: both are read before `out`, which may be `in`, is written.
  const Vec<Real<T>> end = result(last);
  if (c < last) narrow_vector(result(c), out + c);
  narrow_vector(end, out + last);
}

template <class T>
void apply_columns(const AffineMap& map, const Run& run, const ColumnBits& tile,
                   const uint32_t* bits) {
  const AffineVectors<Real<T>> vectors(map);
  uint32_t words[kMaxColumnWords];
  gather_columns(tile, bits, words);
  const T* const in = static_cast<const T*>(run.in);
  const T* const residual = static_cast<const T*>(run.residual);
  T* const out = static_cast<T*>(run.out);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t k = r * tile.row_stride;
    const Run row = {in + k, residual == nullptr ? nullptr : residual + k, out + k, tile.cols};
    apply_row<T>(vectors, row, words + r / 32 * tile.cols, 1u << (r % 32));
  }
}

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {{draw_and_apply<float>, draw_and_apply<BFloat16>, draw_and_apply<Float16>,
           draw_and_apply<double>},
          {apply<float>, apply<BFloat16>, apply<Float16>, apply<double>},
          {apply_alike<float>, apply_alike<BFloat16>, apply_alike<Float16>, apply_alike<double>},
          {apply_columns<float>, apply_columns<BFloat16>, apply_columns<Float16>,
           apply_columns<double>}};
}

}  // namespace fused_dropout::dropout

FUSED_DROPOUT_INSTANTIATE(fused_dropout::dropout::Kernels);
