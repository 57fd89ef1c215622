// Argument checks shared by the CPU and CUDA bindings. The Python layer explains mistakes in the
// terms of its own arguments; these keep a direct call of torch.ops.fused_dropout from ever
// crashing.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>

#include "common/mask.h"
#include "common/params.h"

namespace fused_dropout {

inline void check_mask_arguments(double p, int64_t rows, int64_t cols, int64_t stream,
                                 int64_t digits) {
  TORCH_CHECK_VALUE(p >= 0.0 && p <= 1.0, "p must be a probability in [0, 1], got ", p);
  TORCH_CHECK_VALUE(stream >= 0 && stream <= 127, "stream must be in [0, 127], got ", stream);
  TORCH_CHECK_VALUE(digits >= 1 && digits <= 32, "digits must be in [1, 32], got ", digits);
  TORCH_CHECK_VALUE(rows >= 0 && cols >= 0, "a mask needs rows and cols >= 0, got ", rows, " x ",
                    cols);
  // Groups are counted in 48 bits.
  TORCH_CHECK_VALUE(cols == 0 || rows <= (int64_t{1} << 48) / group_count(cols),
                    "a mask may have at most 2^48 groups of 128 columns, got ", rows, " x ", cols);
}

inline void check_rng_state(const at::Tensor& rng_state) {
  TORCH_CHECK(rng_state.scalar_type() == at::kLong && rng_state.dim() == 1 &&
                  rng_state.size(0) == 2 && rng_state.is_contiguous(),
              "rng_state must be a contiguous int64 tensor [2] (seed, offset), got ",
              rng_state.scalar_type(), " ", rng_state.sizes());
}

inline MaskRule rule_from_cpu_state(const at::Tensor& rng_state, double p, int64_t stream,
                                    int64_t digits) {
  check_rng_state(rng_state);
  const int64_t* state = rng_state.const_data_ptr<int64_t>();
  return make_mask_rule(static_cast<uint64_t>(state[0]), static_cast<uint64_t>(state[1]),
                        static_cast<uint32_t>(stream), p, static_cast<int>(digits));
}

inline ScalarType kernel_type(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return ScalarType::kFloat32;
    case at::kBFloat16:
      return ScalarType::kBFloat16;
    case at::kHalf:
      return ScalarType::kFloat16;
    case at::kDouble:
      return ScalarType::kFloat64;
    default:
      TORCH_CHECK_TYPE(false, "expected float32, bfloat16, float16 or float64, got ",
                       tensor.scalar_type());
  }
}

inline void check_matrix(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.dim() == 2, name, " must be a matrix, got ", tensor.sizes());
}

inline MatrixView view_of(const at::Tensor& matrix) {
  return {matrix.const_data_ptr(), matrix.stride(0), matrix.stride(1)};
}

// `other`, called `name`, must be a `sizes` tensor of the same dtype and device as `like`.
inline void check_operand(const at::Tensor& other, const char* name, at::IntArrayRef sizes,
                          const at::Tensor& like) {
  TORCH_CHECK(other.sizes() == sizes, name, " must have shape ", sizes, ", got ", other.sizes());
  TORCH_CHECK(other.scalar_type() == like.scalar_type(), name, " must have dtype ",
              like.scalar_type(), ", got ", other.scalar_type());
  TORCH_CHECK(other.device() == like.device(), name, " must be on ", like.device(), ", got ",
              other.device());
}

}  // namespace fused_dropout
