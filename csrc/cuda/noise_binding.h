// What the CUDA bindings of the ops on continuous noise share.
#pragma once

#include <ATen/Functions.h>

#include "../noise_arguments.h"
#include "../row_major.h"
#include "binding.h"
#include "noise.cuh"

namespace fused_dropout {

// The rule but for its seed and offset, which the device fills in.
inline MaskRule unseeded_noise_rule() { return make_noise_rule(0, 0); }

template <class T>
const T* data_of(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data_of(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace fused_dropout
