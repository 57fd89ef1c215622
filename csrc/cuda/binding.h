// What the CUDA bindings share: device and stream of a tensor, launch errors, dtypes.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "../common/noise.h"
#include "../ops/checks.h"
#include "../ops/mask_layout.h"
#include "mask.cuh"
#include "masked_dims.cuh"

namespace fused_dropout {

// The current stream of the current device. torch's function for it is in libtorch_cuda, which a
// CPU build of torch lacks: it is looked up at the first call, so that this library links and loads
// without.
inline cudaStream_t current_stream() {
  using Lookup = AOTITorchError (*)(int32_t device, void** stream);
  static const Lookup lookup = [] {
    void* const torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    FUSED_DROPOUT_CHECK(torch_cuda != nullptr, "libtorch_cuda.so is not loaded");
    return reinterpret_cast<Lookup>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  const int32_t device = torch::stable::accelerator::getCurrentDeviceIndex();
  TORCH_ERROR_CODE_CHECK(lookup(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Explains the error that users meet: a GPU that the binary was not compiled for.
inline void check_launch(cudaError_t error) {
  FUSED_DROPOUT_CHECK(
      error != cudaErrorNoKernelImageForDevice && error != cudaErrorUnsupportedPtxVersion &&
          // What asking for more shared memory gives there, which comes before the launch.
          error != cudaErrorInvalidDeviceFunction,
      "this fused_dropout has no CUDA kernels for this GPU; rebuild it with "
      "TORCH_CUDA_ARCH_LIST set to the GPU's compute capability (nvidia-smi "
      "--query-gpu=compute_cap --format=csv)");
  FUSED_DROPOUT_CHECK(error == cudaSuccess, "launching a CUDA kernel of fused_dropout failed: ",
                      cudaGetErrorString(error));
}

// Makes the device of `tensor`, an argument called `name`, the current one. torch calls a CUDA
// operator where any argument is on a GPU, so this one may not be.
inline torch::stable::accelerator::DeviceGuard device_guard(const Tensor& tensor,
                                                            const char* name) {
  FUSED_DROPOUT_CHECK(tensor.is_cuda(), name,
                      " must be on the GPU that the other arguments are on, got ",
                      device_of(tensor));
  const int32_t device = tensor.get_device_index();
  torch::stable::accelerator::DeviceGuard guard(device);
  check_launch(cudaSetDevice(device));  // of the CUDA runtime in this binary, which is not torch's
  return guard;
}

// The seed and offset of an rng_state: read here and passed by value if it is on the CPU, else read
// by the kernels on the device. Neither waits for the device.
inline RngSource rng_source(const Tensor& rng_state, Device device) {
  if (rng_state.is_cpu()) {
    const SeedAndOffset state = read_cpu_state(rng_state);
    return {nullptr, state.seed, state.offset};
  }
  check_rng_state(rng_state);
  FUSED_DROPOUT_CHECK(device_of(rng_state) == device, "rng_state must be on the CPU or on ", device,
                      ", got ", device_of(rng_state));
  return rng_from_state(data_of<int64_t>(rng_state));
}

// The rule of a mask but for its seed and offset, which the device fills in.
inline MaskRule unseeded_rule(double p, int64_t stream, int64_t digits) {
  return make_mask_rule(0, 0, static_cast<uint32_t>(stream), p, static_cast<int>(digits));
}

// The same for noise.
inline MaskRule unseeded_noise_rule() { return make_noise_rule(0, 0); }

inline MaskedDims masked_dims(const MaskLayout& layout) {
  FUSED_DROPOUT_CHECK(layout.dims.size() <= static_cast<size_t>(kMaxMaskedDims),
                      "a mask on a GPU alternates between shared and other dimensions at most ",
                      kMaxMaskedDims, " times, got ", layout.dims.size());
  return make_masked_dims(layout.dims.data(), static_cast<int>(layout.dims.size()));
}

// Packed words on the device of `like`.
inline Tensor empty_words(int64_t words, const Tensor& like) {
  return empty({words}, dtypes().int32, like);
}

// The packed bits of a mask's first `groups` groups, drawn on the device of `like`.
inline Tensor draw_bits(const MaskRule& rule, const RngSource& rng, int64_t groups,
                        const Tensor& like) {
  Tensor bits = empty_words(groups * kGroupWords, like);
  check_launch(launch_draw_groups(rule, rng, 0, 1, groups, mutable_data_of<uint32_t>(bits),
                                  current_stream()));
  return bits;
}

// Calls f with a null pointer to the kernels' element type.
template <class F>
void with_type(ScalarType type, F f) {
  switch (type) {
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

template <class F>
void with_type(const Tensor& tensor, F f) {
  with_type(kernel_type(tensor), f);
}

}  // namespace fused_dropout
