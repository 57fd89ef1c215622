// Continuous noise on a GPU (common/noise.h), and the noise itself as a tensor.
//
// Launch: a thread takes kNoiseChunk neighbours at a time, 4 of float and double and 8 of the short
// types, which are one or two Philox calls, and of large tensors kChunksPerThread such chunks;
// blocks of 256 threads, kMaxBlocks at most and a grid-stride loop beyond. The loads of a chunk are
// on their way while it draws. Every kernel here and in the headers that include this one has two
// forms: 16-byte accesses, and element by element for pointers that are not aligned.
//
// Floor: the bytes, 4 an element of bf16 read and written, of which an H200 copies 1.07e12 a second
// at 4.3 TB/s: 31 issue slots an element. Counted in sm_90's code Philox takes 13, a normal 22
// more, half of a logarithm, square root, sine and cosine, loads, stores and conversions 5.
// Prediction for bf16: Gaussian dropout, 40 slots, 0.76 of copy speed; fp32 has twice the slots,
// and is limited by memory.
#pragma once

#include "../common/noise.h"
#include "elementary.cuh"
#include "elements.cuh"
#include "mask.cuh"
#include "raw_elements.cuh"

namespace fused_dropout {
namespace {

constexpr int kNoiseThreads = 256;

template <class T>
constexpr int kNoiseChunk = kVector<T> < kNoiseWords ? kNoiseWords : kVector<T>;

// The words of elements first .. first + kCount - 1, whose calls advance in lockstep. `first` is a
// multiple of kNoiseWords.
template <int kCount>
FUSED_DROPOUT_DEVICE void draw_words(const MaskRule& rule, const PhiloxKeys<uint32_t>& keys,
                                     int64_t first, uint32_t (&words)[kCount]) {
  constexpr int kCalls = kCount / kNoiseWords;
  uint32_t calls[kCalls][4];
#pragma unroll
  for (int c = 0; c < kCalls; ++c) {
    const uint64_t call = static_cast<uint64_t>(first / kNoiseWords + c);
    calls[c][0] = static_cast<uint32_t>(call);
    calls[c][1] = rule.slot | static_cast<uint32_t>(call >> 32);
    calls[c][2] = rule.offset[0];
    calls[c][3] = rule.offset[1];
  }
  philox4x32_10(calls, keys);
#pragma unroll
  for (int k = 0; k < kCount; ++k) words[k] = calls[k / kNoiseWords][k % kNoiseWords];
}

struct UniformNoise {
  template <class S, int kCount>
  FUSED_DROPOUT_DEVICE static void of_words(const uint32_t (&words)[kCount], S (&noise)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) noise[k] = uniform_of_word<S>(words[k]);
  }
};

// Two normals from two words (common/noise.h).
FUSED_DROPOUT_DEVICE void normal_pair(uint32_t a, uint32_t b, float* first, float* second) {
  const float root = square_root_of_normal(minus_log(uniform_of_word<float>(a)));  // r / sqrt(2)
  // 2 pi u = pi n + pi h / 2 with n = 0, 1 or 2 and |h| <= 1, exactly: n is odd where bit 31 of
  // b + 2^30 is set, and h is what the bits below bit 31 of b say as a signed number.
  const uint32_t rest = (b << 1 & ~0x3FFu) | 0x200u;
  const float h = static_cast<float>(static_cast<int32_t>(rest)) * 0x1p-31f;
  const uint32_t sign = (b + 0x40000000u) & 0x80000000u;
  const float r = float_from_bits(bits_from_float(root) ^ sign);
  const float w = h * h;
  *first = (r * fmaf(-h, h, 1.0f)) * cosine_factor(w);
  *second = (r * h) * sine_factor(w);
}

FUSED_DROPOUT_DEVICE void normal_pair(uint32_t a, uint32_t b, double* first, double* second) {
  const double r = sqrt(-2.0 * log(uniform_of_word<double>(a)));
  double sine, cosine;
  sincospi(2.0 * uniform_of_word<double>(b), &sine, &cosine);
  *first = r * cosine;
  *second = r * sine;
}

struct NormalNoise {
  template <class S, int kCount>
  FUSED_DROPOUT_DEVICE static void of_words(const uint32_t (&words)[kCount], S (&noise)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; k += 2) {
      normal_pair(words[k], words[k + 1], &noise[k], &noise[k + 1]);
    }
  }
};

// `kCount` neighbours in accesses of `kAccess` each. Of the last chunk only `left` elements exist;
// the others read as 0.
template <class T, int kAccess, int kCount>
FUSED_DROPOUT_DEVICE RawElements<T, kCount> load_chunk(const T* from, int64_t left) {
  if (left >= kCount) return load_raw<T, kAccess, kCount>(from);
  T element[kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) element[k] = k < left ? from[k] : T{};
  RawElements<T, kCount> raw;
  raw.set(element);
  return raw;
}

template <class T, int kAccess, int kCount>
FUSED_DROPOUT_DEVICE void store_chunk(const Real<T> (&from)[kCount], int64_t left, T* to) {
  if (left >= kCount) {
#pragma unroll
    for (int k = 0; k < kCount; k += kAccess) store_neighbours<T, kAccess>(from + k, to + k);
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (k < left) narrow(from[k], to + k);
    }
  }
}

// Calls body(first, draw) for this thread's chunks of `count` elements. draw(words) draws those of
// the chunk, which the body does after it has issued its loads.
template <class T, class Body>
FUSED_DROPOUT_DEVICE void for_each_chunk(const MaskRule& rule, int64_t count, Body body) {
  constexpr int kChunk = kNoiseChunk<T>;
  const PhiloxKeys<uint32_t> keys = held_keys(rule);
  for (int64_t first = thread_in_grid() * kChunk; first < count;
       first += threads_in_grid() * kChunk) {
    body(first, [&](uint32_t (&words)[kChunk]) { draw_words(rule, keys, first, words); });
  }
}

template <class Noise, class T, int kAccess>
__global__ void __launch_bounds__(kNoiseThreads)
    noise_kernel(MaskRule rule, RngSource rng, int64_t start, T* out, int64_t count) {
  constexpr int kChunk = kNoiseChunk<T>;
  rule = seeded(rule, rng);
  const PhiloxKeys<uint32_t> keys = held_keys(rule);
  for (int64_t first = thread_in_grid() * kChunk; first < count;
       first += threads_in_grid() * kChunk) {
    uint32_t words[kChunk];
    Real<T> noise[kChunk];
    draw_words(rule, keys, start + first, words);
    Noise::of_words(words, noise);
    store_chunk<T, kAccess>(noise, count - first, out + first);
  }
}

// ---- launches ---------------------------------------------------------------------------------

// Threads of large tensors take several chunks: each works out its keys once.
constexpr int64_t kManyNoiseBlocks = 132 * 32;  // 32 for each of an H200's multiprocessors
constexpr int64_t kChunksPerThread = 4;

template <class T>
dim3 noise_blocks(int64_t count, int64_t max_blocks = kMaxBlocks) {
  int64_t blocks = ceil_div(ceil_div(count, kNoiseChunk<T>), kNoiseThreads);
  if (blocks > kManyNoiseBlocks) {
    const int64_t fewer = ceil_div(blocks, kChunksPerThread);
    blocks = fewer > kManyNoiseBlocks ? fewer : kManyNoiseBlocks;
  }
  return dim3(static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks));
}

// The noise from element `start` on, a multiple of kNoiseWords. T is float or double.
template <class Noise, class T>
cudaError_t launch_noise(const MaskRule& rule, const RngSource& rng, T* out, int64_t count,
                         int64_t start, cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  if (count == 0) return cudaSuccess;
  const dim3 blocks = noise_blocks<T>(count, max_blocks);
  if (is_aligned(out, 16)) {
    return launch_kernel<noise_kernel<Noise, T, kVector<T>>>(blocks, dim3(kNoiseThreads), 0, stream,
                                                             rule, rng, start, out, count);
  }
  return launch_kernel<noise_kernel<Noise, T, 1>>(blocks, dim3(kNoiseThreads), 0, stream, rule, rng,
                                                  start, out, count);
}

}  // namespace
}  // namespace fused_dropout
