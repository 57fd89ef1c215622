// DropConnect's masks on AVX2, which has no mask registers: whole runs of a group's bits in the
// lanes of a vector. Included by isa_avx2.cpp alone.
#pragma once

#include "vectors_avx2.h"

namespace fused_dropout {
namespace {

// The mask of a row and an output feature over a group of columns, in the sign bits of the lanes
// that the next step works on: each lane holds a run of the group's bits, and adding it to itself
// brings the next. So columns lie in panels as `arrange` puts them, step k at
//   column 16 j + 15 - k of lane j (float), 32 j + 31 - k (double).
//
// A masked load under the sign bits costs a uop for the vector ports on Intel and none on AMD,
// where a blend of the sum takes the place of a whole multiply-add. But it makes the dropped
// product 0 times the other operand, which must be finite: kMasksOperands.
constexpr bool kMasksOperands = true;
constexpr int kMaskBytes = 32;

template <class R>
struct GroupMask {
  __m256i next;
};

template <class R>
FUSED_DROPOUT_INLINE GroupMask<R> expand_mask(const uint8_t* bits) {
  // The bytes of each lane's run, last byte uppermost; 0x80 makes a zero.
  const __m256i runs = sizeof(R) == 4 ? _mm256_setr_epi64x(0x0302808001008080, 0x0706808005048080,
                                                           0x0B0A808009088080, 0x0F0E80800D0C8080)
                                      : _mm256_setr_epi64x(0x0302010080808080, 0x0706050480808080,
                                                           0x0B0A090880808080, 0x0F0E0D0C80808080);
  const __m128i group = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bits));
  return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(group), runs)};
}

template <class R>
FUSED_DROPOUT_INLINE GroupMask<R> load_mask(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
template <class R>
FUSED_DROPOUT_INLINE void store_mask(uint8_t* p, GroupMask<R> mask) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), mask.next);
}

FUSED_DROPOUT_INLINE void to_next_step(GroupMask<float>& mask) {
  mask.next = _mm256_add_epi32(mask.next, mask.next);
}
FUSED_DROPOUT_INLINE void to_next_step(GroupMask<double>& mask) {
  mask.next = _mm256_add_epi64(mask.next, mask.next);
}

// The numbers that the mask keeps, 0 in place of the others.
FUSED_DROPOUT_INLINE Vec<float> load_kept(const float* p, GroupMask<float> mask) {
  return {_mm256_maskload_ps(p, mask.next)};
}
FUSED_DROPOUT_INLINE Vec<double> load_kept(const double* p, GroupMask<double> mask) {
  return {_mm256_maskload_pd(p, mask.next)};
}

FUSED_DROPOUT_INLINE Vec<float> select_kept(GroupMask<float> mask, Vec<float> a, Vec<float> b) {
  return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(mask.next))};
}
FUSED_DROPOUT_INLINE Vec<double> select_kept(GroupMask<double> mask, Vec<double> a, Vec<double> b) {
  return {_mm256_blendv_pd(b.v, a.v, _mm256_castsi256_pd(mask.next))};
}

// sum + w * x where the mask keeps it; goes on to the next step.
template <bool kFinite, class R>
FUSED_DROPOUT_INLINE Vec<R> add_kept(GroupMask<R>& mask, int, const R* w, Vec<R> x, Vec<R> sum) {
  sum = kFinite ? multiply_add(load_kept(w, mask), x, sum)
                : select_kept(mask, multiply_add(load(w), x, sum), sum);
  to_next_step(mask);
  return sum;
}

// The two products of a gradient with what the mask keeps: one masked load serves both.
template <class R>
constexpr int kGradCopies = Vec<R>::kLanes;  // of a gradient in its panel

template <bool kInput, bool kWeight, bool kFinite, class R>
FUSED_DROPOUT_INLINE void add_gradients(GroupMask<R>& mask, int, const R* grad, Vec<R> w, Vec<R> x,
                                        Vec<R>& d_input, Vec<R>& d_weight) {
  const Vec<R> g = kFinite ? load_kept(grad, mask) : load(grad);
  if constexpr (kInput) {
    const Vec<R> sum = multiply_add(w, g, d_input);
    d_input = kFinite ? sum : select_kept(mask, sum, d_input);
  }
  if constexpr (kWeight) {
    const Vec<R> sum = multiply_add(x, g, d_weight);
    d_weight = kFinite ? sum : select_kept(mask, sum, d_weight);
  }
  to_next_step(mask);
}

FUSED_DROPOUT_INLINE void transpose(__m256 (&rows)[8]) {
  __m256 a[8], b[8];
  for (int k = 0; k < 8; k += 2) {
    a[k] = _mm256_unpacklo_ps(rows[k], rows[k + 1]);
    a[k + 1] = _mm256_unpackhi_ps(rows[k], rows[k + 1]);
  }
  for (int k = 0; k < 8; k += 4) {
    b[k] = _mm256_shuffle_ps(a[k], a[k + 2], 0x44);
    b[k + 1] = _mm256_shuffle_ps(a[k], a[k + 2], 0xEE);
    b[k + 2] = _mm256_shuffle_ps(a[k + 1], a[k + 3], 0x44);
    b[k + 3] = _mm256_shuffle_ps(a[k + 1], a[k + 3], 0xEE);
  }
  for (int k = 0; k < 4; ++k) {
    rows[k] = _mm256_permute2f128_ps(b[k], b[k + 4], 0x20);
    rows[k + 4] = _mm256_permute2f128_ps(b[k], b[k + 4], 0x31);
  }
}

FUSED_DROPOUT_INLINE void transpose(__m256d (&rows)[4]) {
  const __m256d a = _mm256_unpacklo_pd(rows[0], rows[1]);
  const __m256d b = _mm256_unpackhi_pd(rows[0], rows[1]);
  const __m256d c = _mm256_unpacklo_pd(rows[2], rows[3]);
  const __m256d d = _mm256_unpackhi_pd(rows[2], rows[3]);
  rows[0] = _mm256_permute2f128_pd(a, c, 0x20);
  rows[1] = _mm256_permute2f128_pd(b, d, 0x20);
  rows[2] = _mm256_permute2f128_pd(a, c, 0x31);
  rows[3] = _mm256_permute2f128_pd(b, d, 0x31);
}

// The columns of a group, one vector for each step at `at(step)`, and back.
template <class R, class At>
FUSED_DROPOUT_INLINE void arrange(const R* columns, At at) {
  constexpr int kLanes = Vec<R>::kLanes;
  constexpr int kRun = kGroupColumns / kLanes;
  for (int c = 0; c < kRun; c += kLanes) {
    decltype(Vec<R>::v) block[kLanes];
    for (int j = 0; j < kLanes; ++j) block[j] = load(columns + j * kRun + c).v;
    transpose(block);
    for (int k = 0; k < kLanes; ++k) store(at(kRun - 1 - c - k), Vec<R>{block[k]});
  }
}
template <class R, class At>
FUSED_DROPOUT_INLINE void restore(At at, R* columns) {
  constexpr int kLanes = Vec<R>::kLanes;
  constexpr int kRun = kGroupColumns / kLanes;
  for (int c = 0; c < kRun; c += kLanes) {
    decltype(Vec<R>::v) block[kLanes];
    for (int k = 0; k < kLanes; ++k) block[k] = load(at(kRun - 1 - c - k)).v;
    transpose(block);
    for (int j = 0; j < kLanes; ++j) store(columns + j * kRun + c, Vec<R>{block[j]});
  }
}

}  // namespace
}  // namespace fused_dropout
