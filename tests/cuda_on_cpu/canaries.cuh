// Small kernels with one bug each, planted when kPlanted is true. They check the checker: every bug
// must be reported in the modes that are meant to find it, and no clean kernel in any.
//
// All take `in` and `out` of n floats, in blocks of kCanaryThreads (two warps).
#pragma once

#include "../../csrc/cuda/compat.h"

namespace fused_dropout {
namespace {

constexpr int kCanaryThreads = 64;

FUSED_DROPOUT_DEVICE int canary_index() { return blockIdx.x * kCanaryThreads + threadIdx.x; }

// Each block reversed.
template <bool kPlanted>
__global__ void missing_barrier(const float* in, float* out, int) {
  FUSED_DROPOUT_SHARED(float, tile, [kCanaryThreads]);
  const int t = threadIdx.x;
  tile[t] = in[canary_index()];
  if constexpr (!kPlanted) __syncthreads();
  out[canary_index()] = tile[kCanaryThreads - 1 - t];
}

// Each block reversed and then reversed again, through one tile: the second write must not overtake
// the first read.
template <bool kPlanted>
__global__ void missing_second_barrier(const float* in, float* out, int) {
  FUSED_DROPOUT_SHARED(float, tile, [kCanaryThreads]);
  const int t = threadIdx.x;
  float value = in[canary_index()];
  for (int round = 0; round < 2; ++round) {
    tile[t] = value;
    __syncthreads();
    value = tile[kCanaryThreads - 1 - t];
    if constexpr (!kPlanted) __syncthreads();
  }
  out[canary_index()] = value;
}

// Each warp rotated by one lane.
template <bool kPlanted>
__global__ void missing_warp_barrier(const float* in, float* out, int) {
  FUSED_DROPOUT_SHARED(float, tile, [2][32]);
  float* const warp = tile[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  warp[lane] = in[canary_index()];
  if constexpr (!kPlanted) __syncwarp();
  out[canary_index()] = warp[(lane + 1) % 32];
}

// Each element plus the next.
template <bool kPlanted>
__global__ void read_past_the_end(const float* in, float* out, int n) {
  const int i = canary_index();
  const int end = kPlanted ? n + 1 : n;
  if (i < n) out[i] = in[i] + (i + 1 < end ? in[i + 1] : 0.0f);
}

// A copy.
template <bool kPlanted>
__global__ void write_past_the_end(const float* in, float* out, int n) {
  const int i = canary_index();
  if (kPlanted || i < n) out[i] = in[i < n ? i : 0];
}

// Each block shifted by one, its first element 0.
template <bool kPlanted>
__global__ void write_past_shared(const float* in, float* out, int) {
  FUSED_DROPOUT_SHARED(float, tile, [kCanaryThreads]);
  const int t = threadIdx.x;
  if (t == 0) tile[0] = 0.0f;
  if (kPlanted || t + 1 < kCanaryThreads) tile[t + 1] = in[canary_index()];
  __syncthreads();
  out[canary_index()] = tile[t];
}

// Each block reversed, in dynamic shared memory. The planted bug is in the launch.
__global__ void reverse_in_dynamic_shared(const float* in, float* out, int) {
  FUSED_DROPOUT_DYNAMIC_SHARED(float, tile);
  const int t = threadIdx.x;
  tile[t] = in[canary_index()];
  __syncthreads();
  out[canary_index()] = tile[kCanaryThreads - 1 - t];
}

// Block b adds its first element to out[b % 2].
template <bool kPlanted>
__global__ void racing_add(const float* in, float* out, int) {
  if (threadIdx.x != 0) return;
  float* const sum = &out[blockIdx.x % 2];
  if constexpr (kPlanted) {
    *sum += in[canary_index()];
  } else {
    atomicAdd(sum, in[canary_index()]);
  }
}

// Block b puts its first element in out[b + 2]; the last to come adds them up into out[0]. out[1],
// as an integer, counts the blocks.
template <bool kPlanted>
__global__ void missing_fence(const float* in, float* out, int) {
  if (threadIdx.x != 0) return;
  out[blockIdx.x + 2] = in[canary_index()];
  if constexpr (!kPlanted) __threadfence();
  const unsigned before = atomicAdd(reinterpret_cast<unsigned*>(&out[1]), 1u);
  if (before + 1 < gridDim.x) return;
  if constexpr (!kPlanted) __threadfence();
  float sum = 0.0f;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += out[b + 2];
  out[0] = sum;
}

// A copy, four neighbours by each thread.
template <bool kPlanted>
__global__ void misaligned_load(const float* in, float* out, int n) {
  const int first = canary_index() * 4;
  if (first + 4 > n) return;
  const float4 v = *reinterpret_cast<const float4*>(in + first + (kPlanted && first > 0 ? -1 : 0));
  out[first] = v.x, out[first + 1] = v.y, out[first + 2] = v.z, out[first + 3] = v.w;
}

// The same, with the bug in what is written.
template <bool kPlanted>
__global__ void misaligned_store(const float* in, float* out, int n) {
  const int first = canary_index() * 4;
  if (first + 4 > n) return;
  *reinterpret_cast<float4*>(out + first + (kPlanted && first > 0 ? -1 : 0)) =
      make_float4(in[first], in[first + 1], in[first + 2], in[first + 3]);
}

// A copy, by cp.async.
template <bool kPlanted>
__global__ void missing_copy_wait(const float* in, float* out, int) {
  FUSED_DROPOUT_SHARED(float, tile, [kCanaryThreads]);
  const int t = threadIdx.x;
  copy_async<4>(&tile[t], &in[canary_index()]);
  copy_async_commit();
  if constexpr (!kPlanted) copy_async_wait<0>();
  out[canary_index()] = tile[t];
}

// Each block reversed, by cp.async: the wait is for a thread's own copies only.
template <bool kPlanted>
__global__ void missing_barrier_after_copy(const float* in, float* out, int) {
  FUSED_DROPOUT_SHARED(float, tile, [kCanaryThreads]);
  const int t = threadIdx.x;
  copy_async<4>(&tile[t], &in[canary_index()]);
  copy_async_commit();
  copy_async_wait<0>();
  if constexpr (!kPlanted) __syncthreads();
  out[canary_index()] = tile[kCanaryThreads - 1 - t];
}

// A copy.
template <bool kPlanted>
__global__ void divergent_barrier(const float* in, float* out, int) {
  if (kPlanted && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[canary_index()] = in[canary_index()];
}

// A copy of n elements, not a multiple of the block.
template <bool kPlanted>
__global__ void return_before_barrier(const float* in, float* out, int n) {
  const int i = canary_index();
  if (kPlanted && i >= n) return;
  __syncthreads();
  if (i < n) out[i] = in[i];
}

// A copy, by adding to what should be 0.
template <bool kPlanted>
__global__ void uninitialised_shared(const float* in, float* out, int) {
  FUSED_DROPOUT_SHARED(float, tile, [kCanaryThreads]);
  const int t = threadIdx.x;
  if constexpr (!kPlanted) tile[t] = 0.0f;
  tile[t] += in[canary_index()];
  out[canary_index()] = tile[t];
}

// Lanes 0..15 of each warp get the sum of theirs and the one 16 above, the others their own.
template <bool kPlanted>
__global__ void lanes_missing_from_shuffle(const float* in, float* out, int) {
  const bool low = threadIdx.x % 32 < 16;
  const float value = in[canary_index()];
  float other = 0.0f;
  if (!kPlanted || low) other = __shfl_xor_sync(~0u, value, 16);
  out[canary_index()] = low ? value + other : value;
}

// The same, with a mask that leaves out the lanes that are read.
template <bool kPlanted>
__global__ void shuffle_from_outside_mask(const float* in, float* out, int) {
  const bool low = threadIdx.x % 32 < 16;
  const float value = in[canary_index()];
  float other = 0.0f;
  if constexpr (kPlanted) {
    if (low) other = __shfl_xor_sync(0xFFFFu, value, 16);
  } else {
    other = __shfl_xor_sync(~0u, value, 16);
  }
  out[canary_index()] = low ? value + other : value;
}

}  // namespace
}  // namespace fused_dropout
