// Checks of arguments that several operators have, for the CPU and the CUDA bindings. The Python
// layer explains mistakes in the terms of its own arguments; these keep a direct call of
// torch.ops.fused_dropout from ever crashing.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>

#include "../common/mask.h"
#include "../common/params.h"
#include "../torch_abi.h"

namespace fused_dropout {

inline void check_probability(double p, const char* name = "p") {
  FUSED_DROPOUT_CHECK(p >= 0.0 && p <= 1.0, name, " must be a probability in [0, 1], got ", p);
}

inline void check_not_negative(double number, const char* name) {
  FUSED_DROPOUT_CHECK(number >= 0.0 && std::isfinite(number), name,
                      " must be at least 0 and finite, got ", number);
}

// The bit matrix of a mask: groups are counted in 48 bits.
inline void check_mask_size(int64_t rows, int64_t cols) {
  FUSED_DROPOUT_CHECK(rows >= 0 && cols >= 0, "a mask needs rows and cols >= 0, got ", rows, " x ",
                      cols);
  FUSED_DROPOUT_CHECK(cols == 0 || rows <= (int64_t{1} << 48) / group_count(cols),
                      "a mask may have at most 2^48 groups of 128 columns, got ", rows, " x ",
                      cols);
}

inline void check_rng_state(const Tensor& rng_state) {
  FUSED_DROPOUT_CHECK(dtype_of(rng_state) == dtypes().int64 && rng_state.dim() == 1 &&
                          rng_state.size(0) == 2 && rng_state.is_contiguous(),
                      "rng_state must be a contiguous int64 tensor [2] (seed, offset), got ",
                      DtypeName{dtype_of(rng_state)}, " ", rng_state.sizes());
}

struct SeedAndOffset {
  uint64_t seed;
  uint64_t offset;
};

// Of an rng_state on the CPU.
inline SeedAndOffset read_cpu_state(const Tensor& rng_state) {
  check_rng_state(rng_state);
  const int64_t* const state = data_of<int64_t>(rng_state);
  return {static_cast<uint64_t>(state[0]), static_cast<uint64_t>(state[1])};
}

// torch calls an operator of the CPU where all tensors are there, so this one is.
inline MaskRule rule_from_cpu_state(const Tensor& rng_state, double p, int64_t stream,
                                    int64_t digits) {
  const SeedAndOffset state = read_cpu_state(rng_state);
  return make_mask_rule(state.seed, state.offset, static_cast<uint32_t>(stream), p,
                        static_cast<int>(digits));
}

inline ScalarType kernel_type(const Tensor& tensor) {
  const Dtype dtype = dtype_of(tensor);
  const Dtypes& known = dtypes();
  if (dtype == known.float32) return ScalarType::kFloat32;
  if (dtype == known.bfloat16) return ScalarType::kBFloat16;
  if (dtype == known.float16) return ScalarType::kFloat16;
  FUSED_DROPOUT_CHECK(dtype == known.float64,
                      "expected float32, bfloat16, float16 or float64, got ", DtypeName{dtype});
  return ScalarType::kFloat64;
}

// The index of a kernel of `tensor`'s dtype in a table of kernels.
inline int kernel_index(const Tensor& tensor) { return static_cast<int>(kernel_type(tensor)); }

// What sums over elements of `tensor` are kept in.
inline Dtype sum_dtype(const Tensor& tensor) {
  return dtype_of(tensor) == dtypes().float64 ? dtypes().float64 : dtypes().float32;
}

inline void check_matrix(const Tensor& tensor, const char* name) {
  FUSED_DROPOUT_CHECK(tensor.dim() == 2, name, " must be a matrix, got ", tensor.sizes());
}

inline MatrixView view_of(const Tensor& matrix) {
  return {matrix.const_data_ptr(), matrix.stride(0), matrix.stride(1)};
}

// `other`, called `name`, must be a `sizes` tensor of the same dtype and device as `like`.
inline void check_operand(const Tensor& other, const char* name, Sizes sizes, const Tensor& like) {
  FUSED_DROPOUT_CHECK(same_sizes(other.sizes(), sizes), name, " must have shape ", sizes, ", got ",
                      other.sizes());
  FUSED_DROPOUT_CHECK(dtype_of(other) == dtype_of(like), name, " must have dtype ",
                      DtypeName{dtype_of(like)}, ", got ", DtypeName{dtype_of(other)});
  FUSED_DROPOUT_CHECK(on_same_device(other, like), name, " must be on ", device_of(like), ", got ",
                      device_of(other));
}

}  // namespace fused_dropout
