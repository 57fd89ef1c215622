// Intrinsics of <immintrin.h> that SIMD Everywhere lacks in some release, written from Intel's
// description of each. Its own are macros, so `#if !defined` leaves what a release has alone. Where
// a kernel needs another one, add it here: the slower and plainer, the better.
#pragma once

#include <cstdint>

#if !defined(_MM_FROUND_NO_EXC)
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#endif

#if !defined(__mmask8)
#define __mmask8 simde__mmask8
#define __mmask16 simde__mmask16
#endif

namespace missing_intrinsics {

// A vector as its lanes, and back.
template <class Element, int kCount>
struct Lanes {
  Element lane[kCount];
};
template <class To, class From>
static inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a vector has as many bits as its lanes");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
using Floats4 = Lanes<float, 4>;
using Floats8 = Lanes<float, 8>;
using Floats16 = Lanes<float, 16>;
using Doubles8 = Lanes<double, 8>;
using Shorts16 = Lanes<uint16_t, 16>;
using Ints16 = Lanes<uint32_t, 16>;

// The product and sum are rounded once, as the instruction rounds them; lanes whose bit of k is 0
// are c's.
SIMDE_FUNCTION_ATTRIBUTES simde__m512 mask3_fmadd_ps(simde__m512 a, simde__m512 b, simde__m512 c,
                                                     simde__mmask16 k) {
  const auto x = as<Floats16>(a);
  const auto y = as<Floats16>(b);
  auto sum = as<Floats16>(c);
  for (int i = 0; i < 16; ++i) {
    if (k >> i & 1) sum.lane[i] = __builtin_fmaf(x.lane[i], y.lane[i], sum.lane[i]);
  }
  return as<simde__m512>(sum);
}

SIMDE_FUNCTION_ATTRIBUTES simde__m512d mask3_fmadd_pd(simde__m512d a, simde__m512d b,
                                                      simde__m512d c, simde__mmask8 k) {
  const auto x = as<Doubles8>(a);
  const auto y = as<Doubles8>(b);
  auto sum = as<Doubles8>(c);
  for (int i = 0; i < 8; ++i) {
    if (k >> i & 1) sum.lane[i] = __builtin_fma(x.lane[i], y.lane[i], sum.lane[i]);
  }
  return as<simde__m512d>(sum);
}

// The lower or the upper eight.
SIMDE_FUNCTION_ATTRIBUTES simde__m256 extractf32x8_ps(simde__m512 a, int upper) {
  const auto all = as<Floats16>(a);
  Floats8 half;
  for (int i = 0; i < 8; ++i) half.lane[i] = all.lane[8 * upper + i];
  return as<simde__m256>(half);
}

// Halves added to halves: lanes 0 to 3 and 4 to 7, and so on.
SIMDE_FUNCTION_ATTRIBUTES double reduce_add_pd(simde__m512d a) {
  auto sum = as<Doubles8>(a);
  for (int half = 4; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sum.lane[i] += sum.lane[i + half];
  }
  return sum.lane[0];
}

SIMDE_FUNCTION_ATTRIBUTES simde__m512i cvtepu16_epi32(simde__m256i a) {
  const auto narrow = as<Shorts16>(a);
  Ints16 wide;
  for (int i = 0; i < 16; ++i) wide.lane[i] = narrow.lane[i];
  return as<simde__m512i>(wide);
}

// The lower half of each lane.
SIMDE_FUNCTION_ATTRIBUTES simde__m256i cvtepi32_epi16(simde__m512i a) {
  const auto wide = as<Ints16>(a);
  Shorts16 narrow;
  for (int i = 0; i < 16; ++i) narrow.lane[i] = static_cast<uint16_t>(wide.lane[i]);
  return as<simde__m256i>(narrow);
}

// Half floats, four at a time by the narrower intrinsics.
SIMDE_FUNCTION_ATTRIBUTES simde__m512 cvtph_ps(simde__m256i a) {
  const auto halves = as<Shorts16>(a);
  Floats16 floats;
  for (int i = 0; i < 16; i += 4) {
    Lanes<uint16_t, 8> four = {};
    for (int k = 0; k < 4; ++k) four.lane[k] = halves.lane[i + k];
    const auto wide = as<Floats4>(simde_mm_cvtph_ps(as<simde__m128i>(four)));
    for (int k = 0; k < 4; ++k) floats.lane[i + k] = wide.lane[k];
  }
  return as<simde__m512>(floats);
}

template <int kRounding>
SIMDE_FUNCTION_ATTRIBUTES simde__m256i cvtps_ph(simde__m512 a) {
  static_assert((kRounding & 7) == SIMDE_MM_FROUND_TO_NEAREST_INT, "no other rounding is emulated");
  const auto floats = as<Floats16>(a);
  Shorts16 halves;
  for (int i = 0; i < 16; i += 4) {
    Floats4 four;
    for (int k = 0; k < 4; ++k) four.lane[k] = floats.lane[i + k];
    const auto narrow = as<Lanes<uint16_t, 8>>(simde_mm_cvtps_ph(as<simde__m128>(four), kRounding));
    for (int k = 0; k < 4; ++k) halves.lane[i + k] = narrow.lane[k];
  }
  return as<simde__m256i>(halves);
}

}  // namespace missing_intrinsics

#if !defined(_mm512_mask3_fmadd_ps)
#define _mm512_mask3_fmadd_ps(a, b, c, k) missing_intrinsics::mask3_fmadd_ps(a, b, c, k)
#endif
#if !defined(_mm512_mask3_fmadd_pd)
#define _mm512_mask3_fmadd_pd(a, b, c, k) missing_intrinsics::mask3_fmadd_pd(a, b, c, k)
#endif
#if !defined(_mm512_extractf32x8_ps)
#define _mm512_extractf32x8_ps(a, upper) missing_intrinsics::extractf32x8_ps(a, upper)
#endif
#if !defined(_mm512_reduce_add_pd)
#define _mm512_reduce_add_pd(a) missing_intrinsics::reduce_add_pd(a)
#endif
#if !defined(_mm512_cvtepu16_epi32)
#define _mm512_cvtepu16_epi32(a) missing_intrinsics::cvtepu16_epi32(a)
#endif
#if !defined(_mm512_cvtepi32_epi16)
#define _mm512_cvtepi32_epi16(a) missing_intrinsics::cvtepi32_epi16(a)
#endif
#if !defined(_mm512_cvtph_ps)
#define _mm512_cvtph_ps(a) missing_intrinsics::cvtph_ps(a)
#endif
#if !defined(_mm512_cvtps_ph)
#define _mm512_cvtps_ph(a, rounding) missing_intrinsics::cvtps_ph<rounding>(a)
#endif
