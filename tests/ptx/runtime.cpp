// Stands in for the CUDA runtime: kernels.cu is linked with this instead of libcudart, so that its
// launches reach the interpreter with the kernel's name, the grid and the arguments as the compiler
// packed them.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace {

// `sizes` is the grid, then the block, then the bytes of dynamic shared memory.
using Launch = int (*)(const char* kernel, const unsigned* sizes, void** arguments);

constexpr int kSharedBytesWithoutOptIn = 48 * 1024;
constexpr int kSharedBytesAtMost = 227 * 1024;  // of a block on sm_90

struct Kernel {
  std::string name;
  int shared_bytes = kSharedBytesWithoutOptIn;
};

Launch launch = nullptr;
cudaError_t last_error = cudaSuccess;

std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> all;
  return all;
}

cudaError_t failed(cudaError_t error) { return last_error = error; }

[[noreturn]] void unsupported(const char* what) {
  std::fprintf(stderr, "tests/ptx/runtime.cpp: %s is not supported\n", what);
  std::abort();
}

}  // namespace

extern "C" {

void set_launch(Launch function) { launch = function; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) unsupported("this attribute");
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
  const int error = launch(kernel.name.c_str(), sizes, arguments);
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

// What a kernel<<<...>>> would call; the kernels are launched by launch_kernel (compat.h).

cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { unsupported("<<<>>>"); }

cudaError_t __cudaGetKernel(void*, const void*) { unsupported("<<<>>>"); }

cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, void*) { unsupported("<<<>>>"); }

cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  unsupported("<<<>>>");
}
}
