// AVX2 + FMA vectors, with lane masks expanded from the bits.
// Included by isa_avx2.cpp alone, with the instruction set switched on.
#pragma once

#include "../../common/mask.h"
#include "prelude.h"

namespace fused_dropout {
namespace {

// Four 32-bit Philox words, each in the low half of a 64-bit lane (see vectors_avx512.h).
struct Lanes {
  static constexpr int kCount = 4;
  __m256i v;
};

FUSED_DROPOUT_INLINE Lanes splat(uint32_t word) {
  return {_mm256_set1_epi32(static_cast<int>(word))};
}

FUSED_DROPOUT_INLINE Product<Lanes> multiply(Lanes a, uint32_t b) {
  const __m256i product = _mm256_mul_epu32(a.v, _mm256_set1_epi64x(b));
  return {{_mm256_srli_epi64(product, 32)}, {product}};
}

FUSED_DROPOUT_INLINE Lanes operator^(Lanes a, Lanes b) { return {_mm256_xor_si256(a.v, b.v)}; }

FUSED_DROPOUT_INLINE Lanes xor3(Lanes a, Lanes b, Lanes c) {
  return {_mm256_xor_si256(_mm256_xor_si256(a.v, b.v), c.v)};
}

FUSED_DROPOUT_INLINE Lanes load_lanes(const uint64_t* p) {
  const __m256i in_order = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_permute4x64_epi64(in_order, 0xD8)};
}

FUSED_DROPOUT_INLINE Lanes high_halves(Lanes a) { return {_mm256_srli_epi64(a.v, 32)}; }

FUSED_DROPOUT_INLINE Lanes operator|(Lanes a, Lanes b) { return {_mm256_or_si256(a.v, b.v)}; }

FUSED_DROPOUT_INLINE Lanes add64(Lanes a, uint64_t b) {
  return {_mm256_add_epi64(a.v, _mm256_set1_epi64x(static_cast<int64_t>(b)))};
}

// The 128 bits of each of Lanes::kCount groups, in order.
struct Bits {
  __m256i half[2];
};

FUSED_DROPOUT_INLINE Bits bits_of(bool one) {
  const __m256i v = _mm256_set1_epi32(one ? -1 : 0);
  return {{v, v}};
}

FUSED_DROPOUT_INLINE Bits operator|(Bits a, Bits b) {
  return {{_mm256_or_si256(a.half[0], b.half[0]), _mm256_or_si256(a.half[1], b.half[1])}};
}

FUSED_DROPOUT_INLINE Bits operator&(Bits a, Bits b) {
  return {{_mm256_and_si256(a.half[0], b.half[0]), _mm256_and_si256(a.half[1], b.half[1])}};
}

FUSED_DROPOUT_INLINE Bits and_not(Bits a, Bits b) {
  return {{_mm256_andnot_si256(b.half[0], a.half[0]), _mm256_andnot_si256(b.half[1], a.half[1])}};
}

FUSED_DROPOUT_INLINE Bits load_bits(const uint32_t* p) {
  return {{_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))}};
}

FUSED_DROPOUT_INLINE void store_bits(uint32_t* out, Bits a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), a.half[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8), a.half[1]);
}

FUSED_DROPOUT_INLINE Bits pack_words(const Lanes (&word)[4]) {
  const __m256i low = _mm256_blend_epi32(word[0].v, _mm256_slli_epi64(word[1].v, 32), 0xAA);
  const __m256i high = _mm256_blend_epi32(word[2].v, _mm256_slli_epi64(word[3].v, 32), 0xAA);
  return {{_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high)}};
}

template <class Real>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kLanes = 8;
  __m256 v;
};

template <>
struct Vec<double> {
  static constexpr int kLanes = 4;
  __m256d v;
};

FUSED_DROPOUT_INLINE Vec<float> load(const float* p) { return {_mm256_loadu_ps(p)}; }
FUSED_DROPOUT_INLINE Vec<double> load(const double* p) { return {_mm256_loadu_pd(p)}; }
FUSED_DROPOUT_INLINE void store(float* p, Vec<float> a) { _mm256_storeu_ps(p, a.v); }
FUSED_DROPOUT_INLINE void store(double* p, Vec<double> a) { _mm256_storeu_pd(p, a.v); }
FUSED_DROPOUT_INLINE Vec<float> broadcast(float x) { return {_mm256_set1_ps(x)}; }
FUSED_DROPOUT_INLINE Vec<double> broadcast(double x) { return {_mm256_set1_pd(x)}; }

FUSED_DROPOUT_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) {
  return {_mm256_add_ps(a.v, b.v)};
}
FUSED_DROPOUT_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) {
  return {_mm256_add_pd(a.v, b.v)};
}

FUSED_DROPOUT_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
FUSED_DROPOUT_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) {
  return {_mm256_mul_pd(a.v, b.v)};
}

FUSED_DROPOUT_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
FUSED_DROPOUT_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}

// `a` in the lanes whose bit is set, `b` in the others. Shifting lane k's bit into its sign bit is
// all that a blend looks at.
FUSED_DROPOUT_INLINE Vec<float> select_kept(const uint8_t* bits, int chunk, Vec<float> a,
                                            Vec<float> b) {
  int32_t word;
  __builtin_memcpy(&word, bits + chunk / 4 * 4, sizeof word);
  const __m256i to_sign = _mm256_sub_epi32(_mm256_set1_epi32(31 - chunk % 4 * 8),
                                           _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i lanes = _mm256_sllv_epi32(_mm256_set1_epi32(word), to_sign);
  return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(lanes))};
}
FUSED_DROPOUT_INLINE Vec<double> select_kept(const uint8_t* bits, int chunk, Vec<double> a,
                                             Vec<double> b) {
  const __m256i to_sign =
      _mm256_sub_epi64(_mm256_set1_epi64x(63 - chunk % 2 * 4), _mm256_setr_epi64x(0, 1, 2, 3));
  const __m256i lanes = _mm256_sllv_epi64(_mm256_set1_epi64x(bits[chunk / 2]), to_sign);
  return {_mm256_blendv_pd(b.v, a.v, _mm256_castsi256_pd(lanes))};
}

// `a` in the lanes whose word contains `bit`, `b` in the others.
FUSED_DROPOUT_INLINE Vec<float> select_words(const uint32_t* words, uint32_t bit, Vec<float> a,
                                             Vec<float> b) {
  const __m256i tested = _mm256_set1_epi32(static_cast<int>(bit));
  const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  const __m256i lanes = _mm256_cmpeq_epi32(_mm256_and_si256(eight, tested), tested);
  return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(lanes))};
}
FUSED_DROPOUT_INLINE Vec<double> select_words(const uint32_t* words, uint32_t bit, Vec<double> a,
                                              Vec<double> b) {
  const __m128i tested = _mm_set1_epi32(static_cast<int>(bit));
  const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
  const __m128i lanes = _mm_cmpeq_epi32(_mm_and_si128(four, tested), tested);
  return {_mm256_blendv_pd(b.v, a.v, _mm256_castsi256_pd(_mm256_cvtepi32_epi64(lanes)))};
}

FUSED_DROPOUT_INLINE Vec<float> square_root(Vec<float> a) { return {_mm256_sqrt_ps(a.v)}; }
FUSED_DROPOUT_INLINE Vec<double> square_root(Vec<double> a) { return {_mm256_sqrt_pd(a.v)}; }

// sum + a * b in the lanes whose bit is set. Blending the result, not an operand, keeps an infinite
// operand of a dropped product from becoming a NaN.
FUSED_DROPOUT_INLINE Vec<float> fma_kept(const uint8_t* bits, int chunk, Vec<float> a, Vec<float> b,
                                         Vec<float> sum) {
  return select_kept(bits, chunk, multiply_add(a, b, sum), sum);
}
FUSED_DROPOUT_INLINE Vec<double> fma_kept(const uint8_t* bits, int chunk, Vec<double> a,
                                          Vec<double> b, Vec<double> sum) {
  return select_kept(bits, chunk, multiply_add(a, b, sum), sum);
}

// out[k] += the sum of a[k]'s lanes.
FUSED_DROPOUT_INLINE void add_sums4(float* out, const Vec<float> (&a)[4]) {
  const __m256 sums =
      _mm256_hadd_ps(_mm256_hadd_ps(a[0].v, a[1].v), _mm256_hadd_ps(a[2].v, a[3].v));
  const __m128 total = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), total));
}
FUSED_DROPOUT_INLINE void add_sums4(double* out, const Vec<double> (&a)[4]) {
  for (int k = 0; k < 4; ++k) out[k] += (a[k].v[0] + a[k].v[1]) + (a[k].v[2] + a[k].v[3]);
}

FUSED_DROPOUT_INLINE Vec<float> load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

FUSED_DROPOUT_INLINE void store_half(uint16_t* p, Vec<float> a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

FUSED_DROPOUT_INLINE Vec<float> load_bfloat(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}

// As float_to_bfloat in scalar_types.h rounds.
FUSED_DROPOUT_INLINE void store_bfloat(uint16_t* p, Vec<float> a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256i nans = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nans), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

// Two vectors' worth of bfloats, times `factor`.
FUSED_DROPOUT_INLINE void scale_bfloats(const uint16_t* in, Vec<float> factor, uint16_t* out) {
  constexpr int kLanes = Vec<float>::kLanes;
  store_bfloat(out, factor * load_bfloat(in));
  store_bfloat(out + kLanes, factor * load_bfloat(in + kLanes));
}

// Register tiles for 16 registers.
constexpr int kForwardRows = 3;
constexpr int kForwardOuts = 2;
constexpr int kGradTileRows = 2;
constexpr int kGradSteps = 2;

constexpr int kPhiloxAtOnce = 4;

}  // namespace
}  // namespace fused_dropout
