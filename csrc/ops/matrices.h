// torch's tensors and matrix product on matrices in memory, for both backends.
#pragma once

#include "../common/matrices.h"
#include "checks.h"

namespace fused_dropout {

inline Dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::kFloat32:
      return dtypes().float32;
    case ScalarType::kBFloat16:
      return dtypes().bfloat16;
    case ScalarType::kFloat16:
      return dtypes().float16;
    case ScalarType::kFloat64:
      return dtypes().float64;
  }
  return dtypes().float32;
}

// A single matrix has no dimension for the batch.
inline Tensor tensor_of(const Matrices& m, Device device) {
  const int64_t sizes[] = {m.count, m.rows, m.cols};
  const int64_t strides[] = {m.stride, m.row_stride, m.col_stride};
  const size_t skip = m.count == 1 ? 1 : 0;
  return on_memory(m.data, Sizes(sizes + skip, 3 - skip), Sizes(strides + skip, 3 - skip),
                   dtype_of(m.type), device);
}

// out = a b, on the current stream of a GPU.
inline void multiply(const Matrices& a, const Matrices& b, const Matrices& out, Device device) {
  multiply_into(tensor_of(out, device), tensor_of(a, device), tensor_of(b, device));
}

}  // namespace fused_dropout
