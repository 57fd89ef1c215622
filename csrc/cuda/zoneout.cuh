// Zoneout: out = kept ? input : previous, and the output's gradient into two. Elements are moved by
// their bits, alike for all types of a size: U is an unsigned number of that size.
//
// A warp works on up to 32 groups of 128 neighbours in memory at a time: it puts their mask bits
// into shared memory, which it draws as dropout's linear_kernel does, or gathers from a mask that
// has been drawn where the elements are in another order; then it walks over the groups with
// 16-byte accesses. The bits of an access become words of ones and zeros, and a word of the result
// is one LOP3 of them and of the operands.
//
// Floor: the bytes of three tensors, 6 an element of bf16, which at the 4.3 TB/s that an H200
// copies leave 46 issue slots an element. Counted in sm_90's code, not measured: to move an element
// of bf16 takes 7 slots forward and 8 backward (of float 9 and 12, out of 92), and to draw its bit
// 0.4 at one digit of the threshold and 5 at 15. So memory is the limit.
#pragma once

#include "dropout.cuh"

namespace fused_dropout::zoneout {

template <class U>
struct Selection {
  const U* input;
  const U* previous;
  U* out;
  int64_t count;
};

// d_input = kept ? grad : 0 and d_previous = kept ? 0 : grad.
template <class U>
struct Split {
  const U* grad;
  U* d_input;
  U* d_previous;
  int64_t count;
};

namespace {

constexpr int kAtOnce = 2;  // accesses of each operand that a lane reads before it writes
constexpr int kBlocksAtLeast = 3;

// Ones in word `w` of an access where its elements, of kBytes each, have their bits set.
template <int kBytes>
FUSED_DROPOUT_DEVICE uint32_t ones_of_word(uint32_t bits, int w) {
  if constexpr (kBytes == 2) {
    const uint32_t both = bits >> (2 * w);
    return (both & 1 ? 0x0000FFFFu : 0u) | (both & 2 ? 0xFFFF0000u : 0u);
  } else {
    constexpr int kWords = kBytes / 4;  // of an element
    return bits >> (w / kWords) & 1 ? ~0u : 0u;
  }
}

// `a` where the element's bit is set, else `b`.
template <class U, int kCount>
FUSED_DROPOUT_DEVICE Packed<U, kCount> selected(const Packed<U, kCount>& a,
                                                const Packed<U, kCount>& b, uint32_t bits) {
  using Word = typename Packed<U, kCount>::Word;
  Packed<U, kCount> out;
#pragma unroll
  for (int w = 0; w < static_cast<int>(sizeof out / sizeof(Word)); ++w) {
    const uint32_t ones = ones_of_word<sizeof(U)>(bits, w);
    out.word[w] = static_cast<Word>((a.word[w] & ones) | (b.word[w] & ~ones));
  }
  return out;
}

// What an access reads of a run, and what becomes of it, from element k on.
template <class U, int kCount, class Run>
struct Access;

template <class U, int kCount>
struct Access<U, kCount, Selection<U>> {
  Packed<U, kCount> input, previous;
  FUSED_DROPOUT_DEVICE void load(const Selection<U>& run, int64_t k) {
    input = load_packed<U, kCount>(run.input + k);
    previous = load_packed<U, kCount>(run.previous + k);
  }
  FUSED_DROPOUT_DEVICE void store(const Selection<U>& run, int64_t k, uint32_t bits) const {
    store_packed<U, kCount>(selected<U, kCount>(input, previous, bits), run.out + k);
  }
};

template <class U, int kCount>
struct Access<U, kCount, Split<U>> {
  Packed<U, kCount> grad;
  FUSED_DROPOUT_DEVICE void load(const Split<U>& run, int64_t k) {
    grad = load_packed<U, kCount>(run.grad + k);
  }
  FUSED_DROPOUT_DEVICE void store(const Split<U>& run, int64_t k, uint32_t bits) const {
    const Packed<U, kCount> zero = {};
    store_packed<U, kCount>(selected<U, kCount>(grad, zero, bits), run.d_input + k);
    store_packed<U, kCount>(selected<U, kCount>(zero, grad, bits), run.d_previous + k);
  }
};

// Of a warp: elements first .. first + count - 1, whose bits are those of `words`.
template <class U, int kCount, class Run>
FUSED_DROPOUT_DEVICE void move_tile(const Run& run, int64_t first, int count, const uint32_t* words,
                                    int lane) {
  constexpr int kStep = kWarpLanes * kCount;
  const auto bits_of = [&](int k) { return words[k >> 5] >> (k & 31); };
  const int whole = count - count % kCount;
#pragma unroll 1
  for (int k = lane * kCount; k < whole; k += kAtOnce * kStep) {
    Access<U, kCount, Run> access[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (k + j * kStep < whole) access[j].load(run, first + k + j * kStep);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int at = k + j * kStep;
      if (at < whole) access[j].store(run, first + at, bits_of(at));
    }
  }
  const int k = whole + lane;
  if (k < count) {
    Access<U, 1, Run> access;
    access.load(run, first + k);
    access.store(run, first + k, bits_of(k));
  }
}

// Calls fill(first, count, lane) for the tiles of this warp, which writes their bits to `words`.
template <class U, int kCount, class Run, class Fill>
FUSED_DROPOUT_DEVICE void move_tiles(const Run& run, int warp_groups, const uint32_t* words,
                                     Fill fill) {
  const int lane = threadIdx.x % kWarpLanes;
  const int tile = warp_groups * kGroupColumns;
  const int64_t step = threads_in_grid() / kWarpLanes * tile;
  for (int64_t first = thread_in_grid() / kWarpLanes * tile; first < run.count; first += step) {
    const int64_t left = run.count - first;
    const int count = static_cast<int>(left < tile ? left : tile);
    fill(first, count, lane);
    __syncwarp();
    move_tile<U, kCount>(run, first, count, words, lane);
    __syncwarp();  // the words are free
  }
}

template <class U, int kCount, bool kByDigits, class Run>
__global__ void __launch_bounds__(kElementThreads, kBlocksAtLeast)
    linear_kernel(MaskRule rule, RngSource rng, Run run, int warp_groups) {
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  GroupBits* const bits = &drawn[threadIdx.x / kWarpLanes * kWarpLanes];
  rule = seeded(rule, rng);
  move_tiles<U, kCount>(run, warp_groups, bits->word, [&](int64_t first, int count, int lane) {
    dropout::draw<kByDigits>(rule, first / kGroupColumns, static_cast<int>(group_count(count)),
                             lane, bits);
  });
}

template <class U, int kCount, class Run>
__global__ void __launch_bounds__(kElementThreads, kBlocksAtLeast)
    masked_kernel(const uint32_t* bits, MaskedDims dims, Run run, int warp_groups) {
  FUSED_DROPOUT_SHARED(uint32_t, gathered, [kElementThreads * kGroupWords]);
  uint32_t* const words = dropout::words_of_warp(gathered);
  move_tiles<U, kCount>(run, warp_groups, words, [&](int64_t first, int count, int lane) {
    dropout::gather_words(bits, 0, dims, first, count, lane, words);
  });
}

// ---- launches ---------------------------------------------------------------------------------

template <class U>
bool vectors_fit(const Selection<U>& run) {
  return is_aligned(run.input, 16) && is_aligned(run.previous, 16) && is_aligned(run.out, 16);
}
template <class U>
bool vectors_fit(const Split<U>& run) {
  return is_aligned(run.grad, 16) && is_aligned(run.d_input, 16) && is_aligned(run.d_previous, 16);
}

template <class U, bool kByDigits, class Run>
cudaError_t launch_linear_as(const MaskRule& rule, const RngSource& rng, const Run& run,
                             int warp_groups, bool vectors, dim3 blocks, cudaStream_t stream) {
  if (vectors) {
    return launch_kernel<linear_kernel<U, kVector<U>, kByDigits, Run>>(
        blocks, dim3(kElementThreads), 0, stream, rule, rng, run, warp_groups);
  }
  return launch_kernel<linear_kernel<U, 1, kByDigits, Run>>(blocks, dim3(kElementThreads), 0,
                                                            stream, rule, rng, run, warp_groups);
}

// Elements in the order of their mask bits.
template <class U, class Run>
cudaError_t launch_linear(const MaskRule& rule, const RngSource& rng, const Run& run,
                          cudaStream_t stream) {
  if (run.count == 0) return cudaSuccess;
  const int warp_groups = groups_per_warp(group_count(run.count));
  const auto launch = warp_groups <= 2 && dropout::shares_digits(rule)
                          ? launch_linear_as<U, true, Run>
                          : launch_linear_as<U, false, Run>;
  return launch(rule, rng, run, warp_groups, vectors_fit(run),
                dropout::tile_blocks(run.count, warp_groups), stream);
}

template <class U, class Run>
cudaError_t launch_masked_as(const uint32_t* bits, const MaskedDims& dims, const Run& run,
                             int warp_groups, bool vectors, dim3 blocks, cudaStream_t stream) {
  if (vectors) {
    return launch_kernel<masked_kernel<U, kVector<U>, Run>>(blocks, dim3(kElementThreads), 0,
                                                            stream, bits, dims, run, warp_groups);
  }
  return launch_kernel<masked_kernel<U, 1, Run>>(blocks, dim3(kElementThreads), 0, stream, bits,
                                                 dims, run, warp_groups);
}

// Elements in any other order, by a mask that has been drawn.
template <class U, class Run>
cudaError_t launch_masked(const uint32_t* bits, const MaskedDims& dims, const Run& run,
                          cudaStream_t stream) {
  if (run.count == 0) return cudaSuccess;
  const int warp_groups = groups_per_warp(group_count(run.count));
  return launch_masked_as<U>(bits, dims, run, warp_groups, vectors_fit(run),
                             dropout::tile_blocks(run.count, warp_groups), stream);
}

}  // namespace
}  // namespace fused_dropout::zoneout
