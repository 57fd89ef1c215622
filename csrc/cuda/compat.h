// The one header that a kernel file (.cuh) includes besides csrc/common. With nvcc it gives thin
// wrappers over CUDA; any other compiler gets "emulator.h" (tests/cuda_on_cpu, found through the
// include path), which runs the same kernel file on a CPU.
//
// Rules for a kernel file, so that every line of it runs in the emulator:
//   * Inline PTX only in wrappers that have a model in the emulator, as tests/cuda_on_cpu/
//     copy_async.cuh has: here, once a kernel uses one.
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

}  // namespace fused_dropout

#endif
