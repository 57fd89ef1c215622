// The memory that kernels work on: exactly as many bytes as asked for, so that ASan knows where
// they end. Compiled by nvcc, the same tests run on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

constexpr size_t kDeviceAlignment = 256;  // cudaMalloc's

#if defined(__CUDACC__)

#include <cuda_runtime.h>

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s: %s\n", cudaGetErrorName(error), cudaGetErrorString(error));
  std::exit(EXIT_FAILURE);
}

inline uint8_t* device_allocate(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes ? bytes : 1));
  return static_cast<uint8_t*>(memory);
}
inline void device_free(void* memory) { check(cudaFree(memory)); }
inline void copy_to_device(void* to, const void* from, size_t bytes) {
  if (bytes) check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
inline void copy_to_host(void* to, const void* from, size_t bytes) {
  if (bytes) check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
inline void device_synchronize() { check(cudaDeviceSynchronize()); }

#else

inline uint8_t* device_allocate(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kDeviceAlignment, bytes) != 0) {
    std::perror("no memory for a kernel's arguments");
    std::exit(EXIT_FAILURE);
  }
  return static_cast<uint8_t*>(memory);
}
inline void device_free(void* memory) { std::free(memory); }
inline void copy_to_device(void* to, const void* from, size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);
}
inline void copy_to_host(void* to, const void* from, size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);
}
inline void device_synchronize() {}

#endif

template <class T>
T on_host(const T* device_memory) {
  T value;
  copy_to_host(&value, device_memory, sizeof value);
  return value;
}

template <class T>
std::vector<T> on_host(const T* device_memory, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  copy_to_host(values.data(), device_memory, values.size() * sizeof(T));
  return values;
}

// What a kernel needs besides its operands: memory full of one byte, which makes NaNs by default.
template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t count, uint8_t byte = 0xFF) {
    const std::vector<uint8_t> content(static_cast<size_t>(count) * sizeof(T), byte);
    memory_ = device_allocate(content.size());
    copy_to_device(memory_, content.data(), content.size());
  }
  ~Workspace() { device_free(memory_); }  // waits for the kernels
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  T* data() const { return reinterpret_cast<T*>(memory_); }

 private:
  uint8_t* memory_;
};

// DropConnect's stored masks, which an entry takes as an array: one word says that there are none.
constexpr uint32_t kNoMaskBits = 0xFFFFFFFF;

inline const uint32_t* stored_masks(const uint32_t* mask_bits) {
  return on_host(mask_bits) == kNoMaskBits ? nullptr : mask_bits;
}
