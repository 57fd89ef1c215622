// AVX-512 vectors. Mask bits are the hardware's own lane masks: one masked FMA serves 16 floats.
// Included by isa_avx512.cpp alone, with the instruction set switched on.
#pragma once

#include "../../common/mask.h"
#include "prelude.h"

namespace fused_dropout {
namespace {

// Eight 32-bit Philox words, each in the low half of a 64-bit lane, where vpmuludq wants them. The
// high halves hold garbage that no operation looks at.
struct Lanes {
  static constexpr int kCount = 8;
  __m512i v;
};

FUSED_DROPOUT_INLINE Lanes splat(uint32_t word) {
  return {_mm512_set1_epi32(static_cast<int>(word))};
}

FUSED_DROPOUT_INLINE Product<Lanes> multiply(Lanes a, uint32_t b) {
  const __m512i product = _mm512_mul_epu32(a.v, _mm512_set1_epi64(b));
  return {{_mm512_srli_epi64(product, 32)}, {product}};
}

FUSED_DROPOUT_INLINE Lanes operator^(Lanes a, Lanes b) { return {_mm512_xor_si512(a.v, b.v)}; }

FUSED_DROPOUT_INLINE Lanes xor3(Lanes a, Lanes b, Lanes c) {
  return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)};
}

FUSED_DROPOUT_INLINE Lanes load_lanes(const uint64_t* p) {
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  return {_mm512_permutexvar_epi64(order, _mm512_loadu_si512(p))};
}

FUSED_DROPOUT_INLINE Lanes high_halves(Lanes a) { return {_mm512_srli_epi64(a.v, 32)}; }

FUSED_DROPOUT_INLINE Lanes operator|(Lanes a, Lanes b) { return {_mm512_or_si512(a.v, b.v)}; }

FUSED_DROPOUT_INLINE Lanes add64(Lanes a, uint64_t b) {
  return {_mm512_add_epi64(a.v, _mm512_set1_epi64(static_cast<int64_t>(b)))};
}

// The 128 bits of each of Lanes::kCount groups, in order.
struct Bits {
  __m512i half[2];
};

FUSED_DROPOUT_INLINE Bits bits_of(bool one) {
  const __m512i v = _mm512_set1_epi32(one ? -1 : 0);
  return {{v, v}};
}

FUSED_DROPOUT_INLINE Bits operator|(Bits a, Bits b) {
  return {{_mm512_or_si512(a.half[0], b.half[0]), _mm512_or_si512(a.half[1], b.half[1])}};
}

FUSED_DROPOUT_INLINE Bits operator&(Bits a, Bits b) {
  return {{_mm512_and_si512(a.half[0], b.half[0]), _mm512_and_si512(a.half[1], b.half[1])}};
}

FUSED_DROPOUT_INLINE Bits and_not(Bits a, Bits b) {
  return {{_mm512_andnot_si512(b.half[0], a.half[0]), _mm512_andnot_si512(b.half[1], a.half[1])}};
}

FUSED_DROPOUT_INLINE Bits load_bits(const uint32_t* p) {
  return {{_mm512_loadu_si512(p), _mm512_loadu_si512(p + 16)}};
}

FUSED_DROPOUT_INLINE void store_bits(uint32_t* out, Bits a) {
  _mm512_storeu_si512(out, a.half[0]);
  _mm512_storeu_si512(out + 16, a.half[1]);
}

// Unpacking interleaves, which is why load_lanes has put group kCount / 2 + j beside group j.
FUSED_DROPOUT_INLINE Bits pack_words(const Lanes (&word)[4]) {
  const __m512i low = _mm512_mask_blend_epi32(0xAAAA, word[0].v, _mm512_slli_epi64(word[1].v, 32));
  const __m512i high = _mm512_mask_blend_epi32(0xAAAA, word[2].v, _mm512_slli_epi64(word[3].v, 32));
  return {{_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high)}};
}

template <class Real>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kLanes = 16;
  __m512 v;
};

template <>
struct Vec<double> {
  static constexpr int kLanes = 8;
  __m512d v;
};

FUSED_DROPOUT_INLINE Vec<float> load(const float* p) { return {_mm512_loadu_ps(p)}; }
FUSED_DROPOUT_INLINE Vec<double> load(const double* p) { return {_mm512_loadu_pd(p)}; }
FUSED_DROPOUT_INLINE void store(float* p, Vec<float> a) { _mm512_storeu_ps(p, a.v); }
FUSED_DROPOUT_INLINE void store(double* p, Vec<double> a) { _mm512_storeu_pd(p, a.v); }
FUSED_DROPOUT_INLINE Vec<float> broadcast(float x) { return {_mm512_set1_ps(x)}; }
FUSED_DROPOUT_INLINE Vec<double> broadcast(double x) { return {_mm512_set1_pd(x)}; }

FUSED_DROPOUT_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) {
  return {_mm512_add_ps(a.v, b.v)};
}
FUSED_DROPOUT_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) {
  return {_mm512_add_pd(a.v, b.v)};
}

FUSED_DROPOUT_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
FUSED_DROPOUT_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) {
  return {_mm512_mul_pd(a.v, b.v)};
}

// a * b + c.
FUSED_DROPOUT_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
FUSED_DROPOUT_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}

// The 16 bits of vector `chunk`, straight from memory: through a general register it would take a
// second instruction.
FUSED_DROPOUT_INLINE __mmask16 lanes_of(const uint8_t* bits, int chunk) {
  typedef __mmask16 __attribute__((may_alias)) AnyMask;
  __mmask16 lanes;
#if defined(FUSED_DROPOUT_EMULATED)  // without the instruction: tests/simd_on_any_cpu
  lanes = reinterpret_cast<const AnyMask*>(bits)[chunk];
#else
  asm("kmovw %1, %0" : "=k"(lanes) : "m"(reinterpret_cast<const AnyMask*>(bits)[chunk]));
#endif
  return lanes;
}

// `a` in the lanes whose bit is set, `b` in the others. `bits` and `chunk` as for fma_kept.
FUSED_DROPOUT_INLINE Vec<float> select_kept(const uint8_t* bits, int chunk, Vec<float> a,
                                            Vec<float> b) {
  return {_mm512_mask_blend_ps(lanes_of(bits, chunk), b.v, a.v)};
}
FUSED_DROPOUT_INLINE Vec<double> select_kept(const uint8_t* bits, int chunk, Vec<double> a,
                                             Vec<double> b) {
  return {_mm512_mask_blend_pd(bits[chunk], b.v, a.v)};
}

// `a` in the lanes whose word contains `bit`, `b` in the others.
FUSED_DROPOUT_INLINE Vec<float> select_words(const uint32_t* words, uint32_t bit, Vec<float> a,
                                             Vec<float> b) {
  const __m512i tested = _mm512_set1_epi32(static_cast<int>(bit));
  const __mmask16 lanes = _mm512_test_epi32_mask(_mm512_loadu_si512(words), tested);
  return {_mm512_mask_blend_ps(lanes, b.v, a.v)};
}
FUSED_DROPOUT_INLINE Vec<double> select_words(const uint32_t* words, uint32_t bit, Vec<double> a,
                                              Vec<double> b) {
  const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  const __mmask8 lanes = _mm256_test_epi32_mask(eight, _mm256_set1_epi32(static_cast<int>(bit)));
  return {_mm512_mask_blend_pd(lanes, b.v, a.v)};
}

FUSED_DROPOUT_INLINE Vec<float> square_root(Vec<float> a) { return {_mm512_sqrt_ps(a.v)}; }
FUSED_DROPOUT_INLINE Vec<double> square_root(Vec<double> a) { return {_mm512_sqrt_pd(a.v)}; }

// sum + a * b in the lanes whose bit is set; the others keep `sum`. `bits` is the group's 16 bytes
// and `chunk` counts vectors from its start.
FUSED_DROPOUT_INLINE Vec<float> fma_kept(const uint8_t* bits, int chunk, Vec<float> a, Vec<float> b,
                                         Vec<float> sum) {
  return {_mm512_mask3_fmadd_ps(a.v, b.v, sum.v, lanes_of(bits, chunk))};
}
FUSED_DROPOUT_INLINE Vec<double> fma_kept(const uint8_t* bits, int chunk, Vec<double> a,
                                          Vec<double> b, Vec<double> sum) {
  return {_mm512_mask3_fmadd_pd(a.v, b.v, sum.v, bits[chunk])};
}

// out[k] += the sum of a[k]'s lanes.
FUSED_DROPOUT_INLINE void add_sums4(float* out, const Vec<float> (&a)[4]) {
  const __m512 ab =
      _mm512_add_ps(_mm512_unpacklo_ps(a[0].v, a[1].v), _mm512_unpackhi_ps(a[0].v, a[1].v));
  const __m512 cd =
      _mm512_add_ps(_mm512_unpacklo_ps(a[2].v, a[3].v), _mm512_unpackhi_ps(a[2].v, a[3].v));
  const __m512 abcd =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
}
FUSED_DROPOUT_INLINE void add_sums4(double* out, const Vec<double> (&a)[4]) {
  for (int k = 0; k < 4; ++k) out[k] += _mm512_reduce_add_pd(a[k].v);
}

FUSED_DROPOUT_INLINE Vec<float> load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

FUSED_DROPOUT_INLINE void store_half(uint16_t* p, Vec<float> a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

FUSED_DROPOUT_INLINE Vec<float> load_bfloat(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}

// The upper half of each lane becomes what float_to_bfloat in scalar_types.h gives.
FUSED_DROPOUT_INLINE __m512i rounded_to_bfloat(__m512 a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i below = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
  const __m512i rounded = _mm512_mask_add_epi32(below, odd, bits, _mm512_set1_epi32(0x8000));
  const __mmask16 nans = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nans, bits, _mm512_set1_epi32(0x00400000));
}

FUSED_DROPOUT_INLINE void store_bfloat(uint16_t* p, Vec<float> a) {
  const __m512i upper = _mm512_srli_epi32(rounded_to_bfloat(a.v), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(upper));
}

// Two vectors' worth of bfloats, times `factor`. Those at odd places are floats already, but for
// what stands in their lower halves.
FUSED_DROPOUT_INLINE void scale_bfloats(const uint16_t* in, Vec<float> factor, uint16_t* out) {
  const __m512i both = _mm512_loadu_si512(in);
  const __m512i odd = _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u)));
  const __m512i even = _mm512_slli_epi32(both, 16);
  const __m512i upper = rounded_to_bfloat(_mm512_mul_ps(_mm512_castsi512_ps(odd), factor.v));
  const __m512i lower = rounded_to_bfloat(_mm512_mul_ps(_mm512_castsi512_ps(even), factor.v));
  _mm512_storeu_si512(out,
                      _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(lower, 16), upper));
}

// Register tiles: accumulators, operands and a temporary fit 32 registers.
constexpr int kForwardRows = 6;
constexpr int kForwardOuts = 4;
constexpr int kGradTileRows = 4;
constexpr int kGradSteps = 2;

// Philox calls run in lockstep: one alone waits for its own multiplications.
constexpr int kPhiloxAtOnce = 4;

}  // namespace
}  // namespace fused_dropout
