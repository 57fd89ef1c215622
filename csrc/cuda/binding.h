// What the CUDA bindings share: device and stream of a tensor, launch errors, dtypes.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include "../checks.h"
#include "mask.cuh"

namespace fused_dropout {

inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// Explains the error that users meet: a GPU that the binary was not compiled for.
inline void check_launch(cudaError_t error) {
  TORCH_CHECK(error != cudaErrorNoKernelImageForDevice && error != cudaErrorUnsupportedPtxVersion,
              "this fused_dropout has no CUDA kernels for this GPU; rebuild it with "
              "TORCH_CUDA_ARCH_LIST set to the GPU's compute capability (nvidia-smi "
              "--query-gpu=compute_cap --format=csv)");
  TORCH_CHECK(error == cudaSuccess,
              "launching a CUDA kernel of fused_dropout failed: ", cudaGetErrorString(error));
}

// The seed and offset of an rng_state tensor, read by the kernels on the device: no
// synchronisation.
inline RngSource rng_on_device(const at::Tensor& rng_state, const at::Device& device) {
  check_rng_state(rng_state);
  TORCH_CHECK(rng_state.device() == device, "rng_state must be on ", device, ", got ",
              rng_state.device());
  return rng_from_state(rng_state.const_data_ptr<int64_t>());
}

// The rule of a mask but for its seed and offset, which the device fills in.
inline MaskRule unseeded_rule(double p, int64_t stream, int64_t digits) {
  return make_mask_rule(0, 0, static_cast<uint32_t>(stream), p, static_cast<int>(digits));
}

}  // namespace fused_dropout
