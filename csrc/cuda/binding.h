// What the CUDA bindings share: device and stream of a tensor, launch errors, dtypes.
#pragma once

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include "../checks.h"
#include "mask.cuh"

namespace fused_dropout {

inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// Makes the device of `tensor`, an argument called `name`, the current one. torch calls a CUDA
// operator where any argument is on a GPU, so this one may not be.
inline c10::cuda::CUDAGuard device_guard(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.is_cuda(), name, " must be on the GPU that the other arguments are on, got ",
              tensor.device());
  return c10::cuda::CUDAGuard(tensor.device());
}

// Explains the error that users meet: a GPU that the binary was not compiled for.
inline void check_launch(cudaError_t error) {
  TORCH_CHECK(error != cudaErrorNoKernelImageForDevice && error != cudaErrorUnsupportedPtxVersion &&
                  // What asking for more shared memory gives there, which comes before the launch.
                  error != cudaErrorInvalidDeviceFunction,
              "this fused_dropout has no CUDA kernels for this GPU; rebuild it with "
              "TORCH_CUDA_ARCH_LIST set to the GPU's compute capability (nvidia-smi "
              "--query-gpu=compute_cap --format=csv)");
  TORCH_CHECK(error == cudaSuccess,
              "launching a CUDA kernel of fused_dropout failed: ", cudaGetErrorString(error));
}

// The seed and offset of an rng_state: read here and passed by value if it is on the CPU, else read
// by the kernels on the device. Neither waits for the device.
inline RngSource rng_source(const at::Tensor& rng_state, const at::Device& device) {
  check_rng_state(rng_state);
  const int64_t* const state = rng_state.const_data_ptr<int64_t>();
  if (rng_state.is_cpu()) {
    return {nullptr, static_cast<uint64_t>(state[0]), static_cast<uint64_t>(state[1])};
  }
  TORCH_CHECK(rng_state.device() == device, "rng_state must be on the CPU or on ", device, ", got ",
              rng_state.device());
  return rng_from_state(state);
}

// The rule of a mask but for its seed and offset, which the device fills in.
inline MaskRule unseeded_rule(double p, int64_t stream, int64_t digits) {
  return make_mask_rule(0, 0, static_cast<uint32_t>(stream), p, static_cast<int>(digits));
}

// Calls f with a null pointer to the kernels' element type of `tensor`.
template <class F>
void with_type(const at::Tensor& tensor, F f) {
  switch (kernel_type(tensor)) {
    case ScalarType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case ScalarType::kBFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    case ScalarType::kFloat16:
      return f(static_cast<__half*>(nullptr));
    case ScalarType::kFloat64:
      return f(static_cast<double*>(nullptr));
  }
}

}  // namespace fused_dropout
