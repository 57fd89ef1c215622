// Stands in for the CUDA runtime: the entries in launches/ are linked with this instead of
// libcudart. Each launch goes to the model with the kernel's name, the grid and the arguments as the
// compiler packed them; questions about the device are answered for an H200.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace {

// What the model does, in Python. `sizes` is the grid, the block, the bytes of dynamic shared
// memory.
struct Model {
  int (*launch)(const char* kernel, const unsigned* sizes, void** arguments);
  size_t (*memory)(const char* name, const char* type, size_t bytes);
  int (*fill)(size_t address, int byte, size_t count);
  int (*blocks_at_once)(const char* kernel, int threads, size_t shared_bytes);
};

constexpr int kSharedBytesWithoutOptIn = 48 * 1024;
constexpr int kSharedBytesAtMost = 227 * 1024;

struct Kernel {
  std::string name;
  int shared_bytes = kSharedBytesWithoutOptIn;
};

Model model{};
cudaError_t last_error = cudaSuccess;

std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> all;
  return all;
}

cudaError_t failed(cudaError_t error) { return last_error = error; }

[[noreturn]] void unsupported(const char* what, int number = 0) {
  std::fprintf(stderr, "kernel_model/runtime.cpp: %s %d is not supported\n", what, number);
  std::abort();
}

int attribute_of_device(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return 132;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return kSharedBytesAtMost;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 228 * 1024;
    case cudaDevAttrL2CacheSize:
      return 50 * 1024 * 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrComputeCapabilityMajor:
      return 9;
    case cudaDevAttrComputeCapabilityMinor:
      return 0;
    default:
      unsupported("device attribute", attribute);
  }
}

}  // namespace

extern "C" {

void set_model(Model functions) { model = functions; }

void* model_memory(const char* name, const char* type, size_t bytes) {
  return reinterpret_cast<void*>(model.memory(name, type, bytes));
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute_of_device(attribute);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks,
                                                                   const void* function,
                                                                   int threads, size_t shared_bytes,
                                                                   unsigned) {
  *blocks = model.blocks_at_once(kernels().at(function).name.c_str(), threads, shared_bytes);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                          int threads, size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads,
                                                                shared_bytes, 0);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    unsupported("function attribute", attribute);
  }
  if (value > kSharedBytesAtMost) return failed(cudaErrorInvalidValue);
  kernels().at(function).shared_bytes = value;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  const Kernel& kernel = kernels().at(function);
  if (config->dynamicSmemBytes > static_cast<size_t>(kernel.shared_bytes)) {
    return failed(cudaErrorInvalidValue);
  }
  const dim3 grid = config->gridDim, block = config->blockDim;
  const unsigned sizes[] = {grid.x,
                            grid.y,
                            grid.z,
                            block.x,
                            block.y,
                            block.z,
                            static_cast<unsigned>(config->dynamicSmemBytes)};
  const int error = model.launch(kernel.name.c_str(), sizes, arguments);
  return error ? failed(cudaErrorLaunchFailure) : cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int byte, size_t count, cudaStream_t) {
  const int error = model.fill(reinterpret_cast<size_t>(to), byte, count);
  return error ? failed(cudaErrorLaunchFailure) : cudaSuccess;
}

// What nvcc's generated code calls when the library is loaded.

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void**) {}

char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void**, const char* host_function, char*, const char* name, int, void*,
                            void*, void*, void*, int*) {
  kernels()[host_function].name = name;
}

void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

// What a kernel<<<...>>> would call; the kernels are launched by launch_kernel (compat.h).

cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { unsupported("<<<>>>"); }

cudaError_t __cudaGetKernel(void*, const void*) { unsupported("<<<>>>"); }

cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, void*) { unsupported("<<<>>>"); }

cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  unsupported("<<<>>>");
}
}
