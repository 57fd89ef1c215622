// The one header that a kernel file (.cuh) includes besides csrc/common. With nvcc it gives thin
// wrappers over CUDA; any other compiler gets "emulator.h" (tests/cuda_on_cpu, found through the
// include path), which runs the same kernel file on a CPU.
//
// Rules for a kernel file, so that every line of it runs in the emulator:
//   * Inline PTX only in wrappers here, each with a model in the emulator (tests/cuda_on_cpu/
//     ptx_models.h).
//   * Shared memory by the macros below; no `__shared__`, no `<<<>>>`, no logic on __CUDA_ARCH__.
//   * Multiply-add as fmaf(a, b, c): the emulator's compiler does not contract a * b + c.
//   * Every thread of a block reaches every __syncthreads(), so a thread that has nothing to do
//     stays until the last one.
//   * Work handed from one block to another goes fence, atomic; atomic, fence, in the threads
//     concerned. Waiting for another block is not supported: blocks run one after another.
#pragma once

#if !defined(__CUDACC__)
#include "emulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#define FUSED_DROPOUT_DEVICE __device__ __forceinline__

// `T name dims` in static shared memory: FUSED_DROPOUT_SHARED(float, tile, [32][33]);
#define FUSED_DROPOUT_SHARED(T, name, dims) __shared__ T name dims

// The dynamic shared memory that the launch asked for, as a T*, aligned to 128 bytes.
#define FUSED_DROPOUT_DYNAMIC_SHARED(T, name)                             \
  extern __shared__ __align__(128) unsigned char dynamic_shared_memory[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared_memory)

namespace fused_dropout {

// Has the compiler work `x` out here, once, and keep it in a register.
FUSED_DROPOUT_DEVICE void hold(uint32_t& x) { asm volatile("" : "+r"(x)); }

// In both arms of an `if` whose condition is the same for all threads: a branch, which executes one
// of them, in place of both with a selection for every result.
FUSED_DROPOUT_DEVICE void keep_branch() { asm volatile(""); }

// Writes 16 bytes of global memory, aligned to as many, in one access: out of a plain store of four
// words nvcc makes four stores now and then.
FUSED_DROPOUT_DEVICE void store_16_bytes(void* to, uint4 words) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

// Asynchronous copies to shared memory (cp.async).
//
// Starts copying `Bytes` (4, 8 or 16) from global to shared memory, both aligned to that many. Only
// the first `valid` bytes are read, the rest becomes zero. The thread may use the data after a
// commit and a wait, other threads after a barrier on top.
template <int Bytes>
FUSED_DROPOUT_DEVICE void copy_async(void* shared, const void* global, int valid = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const size_t from = __cvta_generic_to_global(global);
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(Bytes),
                 "r"(valid)
                 : "memory");
  }
}

// Closes a group: the copies that this thread started since the last commit.
FUSED_DROPOUT_DEVICE void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for all groups of this thread but the newest `Pending`.
template <int Pending>
FUSED_DROPOUT_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// kKernel<<<grid, block, shared_bytes, stream>>>(arguments...) with the opt-in that more than 48
// KiB of dynamic shared memory needs, and the launch check.
template <auto kKernel, class... Arguments>
cudaError_t launch_kernel(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          Arguments&&... arguments) {
  constexpr size_t kWithoutOptIn = 48 * 1024;
  if (shared_bytes > kWithoutOptIn) {
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel),
                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchKernelEx(&config, kKernel, std::forward<Arguments>(arguments)...);
  return cudaGetLastError();
}

// Blocks of a kernel that all multiprocessors of the current device hold at the same time.
template <auto kKernel>
int64_t resident_blocks(int threads, size_t shared_bytes) {
  constexpr int kDevices = 64;
  static std::atomic<int64_t> known[kDevices];
  int device = 0;
  cudaGetDevice(&device);
  const bool is_kept = device < kDevices;
  if (is_kept && known[device] > 0) return known[device];
  int blocks = 0, multiprocessors = 0;
  cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel),
                       cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, shared_bytes);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaGetLastError();  // the launch will meet the same error, and report it
  const int64_t resident =
      int64_t{blocks > 0 ? blocks : 1} * (multiprocessors > 0 ? multiprocessors : 1);
  if (is_kept) known[device] = resident;
  return resident;
}

}  // namespace fused_dropout

#endif
