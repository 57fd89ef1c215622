// Vectors in plain C++, for every other processor.
#pragma once

#include "../../common/mask.h"
#include "scalar_types.h"

namespace fused_dropout {
namespace {

struct Lanes {
  static constexpr int kCount = 2;
  uint32_t low[2];
  uint32_t high[2];
};

FUSED_DROPOUT_INLINE Lanes splat(uint32_t word) { return {{word, word}, {0, 0}}; }

FUSED_DROPOUT_INLINE Product<Lanes> multiply(Lanes a, uint32_t b) {
  Product<Lanes> product{};
  for (int k = 0; k < Lanes::kCount; ++k) {
    const Product<uint32_t> one = fused_dropout::multiply(a.low[k], b);
    product.high.low[k] = one.high;
    product.low.low[k] = one.low;
  }
  return product;
}

FUSED_DROPOUT_INLINE Lanes operator^(Lanes a, Lanes b) {
  return {{a.low[0] ^ b.low[0], a.low[1] ^ b.low[1]}, {0, 0}};
}

FUSED_DROPOUT_INLINE Lanes xor3(Lanes a, Lanes b, Lanes c) {
  return {{a.low[0] ^ b.low[0] ^ c.low[0], a.low[1] ^ b.low[1] ^ c.low[1]}, {0, 0}};
}

FUSED_DROPOUT_INLINE Lanes load_lanes(const uint64_t* p) {
  return {{static_cast<uint32_t>(p[0]), static_cast<uint32_t>(p[1])},
          {static_cast<uint32_t>(p[0] >> 32), static_cast<uint32_t>(p[1] >> 32)}};
}

FUSED_DROPOUT_INLINE Lanes high_halves(Lanes a) { return {{a.high[0], a.high[1]}, {0, 0}}; }

FUSED_DROPOUT_INLINE Lanes operator|(Lanes a, Lanes b) {
  return {{a.low[0] | b.low[0], a.low[1] | b.low[1]}, {0, 0}};
}

FUSED_DROPOUT_INLINE Lanes add64(Lanes a, uint64_t b) {
  uint64_t sum[2];
  for (int k = 0; k < 2; ++k) sum[k] = (static_cast<uint64_t>(a.high[k]) << 32 | a.low[k]) + b;
  return load_lanes(sum);
}

struct Bits {
  GroupBits group[2];
};

FUSED_DROPOUT_INLINE Bits bits_of(bool one) {
  const GroupBits bits = group_of(one ? ~0u : 0u);
  return {{bits, bits}};
}

FUSED_DROPOUT_INLINE Bits operator|(Bits a, Bits b) {
  return {{fused_dropout::operator|(a.group[0], b.group[0]),
           fused_dropout::operator|(a.group[1], b.group[1])}};
}

FUSED_DROPOUT_INLINE Bits operator&(Bits a, Bits b) {
  return {{fused_dropout::operator&(a.group[0], b.group[0]),
           fused_dropout::operator&(a.group[1], b.group[1])}};
}

FUSED_DROPOUT_INLINE Bits and_not(Bits a, Bits b) {
  return {{fused_dropout::and_not(a.group[0], b.group[0]),
           fused_dropout::and_not(a.group[1], b.group[1])}};
}

FUSED_DROPOUT_INLINE Bits load_bits(const uint32_t* p) {
  Bits a;
  __builtin_memcpy(a.group, p, sizeof a.group);
  return a;
}

FUSED_DROPOUT_INLINE void store_bits(uint32_t* out, Bits a) {
  __builtin_memcpy(out, a.group, sizeof a.group);
}

FUSED_DROPOUT_INLINE Bits pack_words(const Lanes (&word)[4]) {
  Bits bits{};
  for (int k = 0; k < Lanes::kCount; ++k) {
    for (int w = 0; w < kGroupWords; ++w) bits.group[k].word[w] = word[w].low[k];
  }
  return bits;
}

template <class Real>
struct Vec {
  static constexpr int kLanes = 8;
  Real v[kLanes];
};

template <class Real>
FUSED_DROPOUT_INLINE Vec<Real> load(const Real* p) {
  Vec<Real> a;
  __builtin_memcpy(a.v, p, sizeof a.v);
  return a;
}

template <class Real>
FUSED_DROPOUT_INLINE void store(Real* p, Vec<Real> a) {
  __builtin_memcpy(p, a.v, sizeof a.v);
}

template <class Real>
FUSED_DROPOUT_INLINE Vec<Real> broadcast(Real x) {
  return {{x, x, x, x, x, x, x, x}};
}

template <class Real>
FUSED_DROPOUT_INLINE Vec<Real> operator+(Vec<Real> a, Vec<Real> b) {
  for (int k = 0; k < Vec<Real>::kLanes; ++k) a.v[k] += b.v[k];
  return a;
}

template <class Real>
FUSED_DROPOUT_INLINE Vec<Real> operator*(Vec<Real> a, Vec<Real> b) {
  for (int k = 0; k < Vec<Real>::kLanes; ++k) a.v[k] *= b.v[k];
  return a;
}

template <class Real>
FUSED_DROPOUT_INLINE Vec<Real> multiply_add(Vec<Real> a, Vec<Real> b, Vec<Real> c) {
  return a * b + c;
}

FUSED_DROPOUT_INLINE Vec<float> square_root(Vec<float> a) {
  for (float& x : a.v) x = __builtin_sqrtf(x);
  return a;
}
FUSED_DROPOUT_INLINE Vec<double> square_root(Vec<double> a) {
  for (double& x : a.v) x = __builtin_sqrt(x);
  return a;
}

// The unsigned integer that holds a Real's bits.
template <class Real>
struct BitsOf {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

// a[k] where is_kept(k), else b[k]; without branches, which random bits would mispredict.
template <class Real, class IsKept>
FUSED_DROPOUT_INLINE Vec<Real> select(Vec<Real> a, Vec<Real> b, IsKept is_kept) {
  using Word = typename BitsOf<Real>::type;
  constexpr int kLanes = Vec<Real>::kLanes;
  Word a_words[kLanes], b_words[kLanes];
  __builtin_memcpy(a_words, a.v, sizeof a_words);
  __builtin_memcpy(b_words, b.v, sizeof b_words);
  for (int k = 0; k < kLanes; ++k) {
    const Word kept = is_kept(k) ? ~Word{0} : Word{0};
    a_words[k] = (a_words[k] & kept) | (b_words[k] & ~kept);
  }
  __builtin_memcpy(a.v, a_words, sizeof a_words);
  return a;
}

// `a` in the lanes whose bit is set, `b` in the others.
template <class Real>
FUSED_DROPOUT_INLINE Vec<Real> select_kept(const uint8_t* bits, int chunk, Vec<Real> a,
                                           Vec<Real> b) {
  const typename BitsOf<Real>::type lanes = bits[chunk];
  return select(a, b, [=](int k) { return (lanes & 1u << k) != 0; });
}

// `a` in the lanes whose word contains `bit`, `b` in the others.
template <class Real>
FUSED_DROPOUT_INLINE Vec<Real> select_words(const uint32_t* words, uint32_t bit, Vec<Real> a,
                                            Vec<Real> b) {
  return select(a, b, [=](int k) { return (words[k] & bit) != 0; });
}

// sum + a * b in the lanes whose bit is set.
template <class Real>
FUSED_DROPOUT_INLINE Vec<Real> fma_kept(const uint8_t* bits, int chunk, Vec<Real> a, Vec<Real> b,
                                        Vec<Real> sum) {
  return select_kept(bits, chunk, multiply_add(a, b, sum), sum);
}

// out[k] += the sum of a[k]'s lanes.
template <class Real>
FUSED_DROPOUT_INLINE void add_sums4(Real* out, const Vec<Real> (&a)[4]) {
  for (int k = 0; k < 4; ++k) {
    const Real* v = a[k].v;
    out[k] += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
  }
}

FUSED_DROPOUT_INLINE Vec<float> load_half(const uint16_t* p) {
  Vec<float> a;
  for (int k = 0; k < Vec<float>::kLanes; ++k) a.v[k] = half_to_float(p[k]);
  return a;
}

FUSED_DROPOUT_INLINE void store_half(uint16_t* p, Vec<float> a) {
  for (int k = 0; k < Vec<float>::kLanes; ++k) p[k] = float_to_half(a.v[k]);
}

FUSED_DROPOUT_INLINE Vec<float> load_bfloat(const uint16_t* p) {
  Vec<float> a;
  for (int k = 0; k < Vec<float>::kLanes; ++k) a.v[k] = widen(BFloat16{p[k]});
  return a;
}

FUSED_DROPOUT_INLINE void store_bfloat(uint16_t* p, Vec<float> a) {
  for (int k = 0; k < Vec<float>::kLanes; ++k) p[k] = float_to_bfloat(a.v[k]);
}

// Two vectors' worth of bfloats, times `factor`.
FUSED_DROPOUT_INLINE void scale_bfloats(const uint16_t* in, Vec<float> factor, uint16_t* out) {
  constexpr int kLanes = Vec<float>::kLanes;
  store_bfloat(out, factor * load_bfloat(in));
  store_bfloat(out + kLanes, factor * load_bfloat(in + kLanes));
}

constexpr int kForwardRows = 1;
constexpr int kForwardOuts = 4;
constexpr int kGradTileRows = 1;
constexpr int kGradSteps = 2;

constexpr int kPhiloxAtOnce = 1;

}  // namespace
}  // namespace fused_dropout
