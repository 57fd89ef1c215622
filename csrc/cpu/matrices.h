// Batches of matrices in memory, and torch's product and conversions of them.
#pragma once

#include <memory>

#include "../ops/checks.h"
#include "kernel_types.h"
#include "scratch.h"

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

inline int64_t bytes_of(ScalarType type) {
  return type == ScalarType::kFloat64 ? 8 : type == ScalarType::kFloat32 ? 4 : 2;
}

// A batch of matrices of any strides, in elements.
struct Matrices {
  const void* data;
  ScalarType type;
  int64_t count, rows, cols;
  int64_t stride, row_stride, col_stride;

  // Matrices k, k + 1, ... of rows and columns that begin where the ranges do.
  Matrices part(Range which, Range in_rows, Range in_cols) const {
    const int64_t first =
        which.begin * stride + in_rows.begin * row_stride + in_cols.begin * col_stride;
    return {static_cast<const char*>(data) + first * bytes_of(type),
            type,
            which.size(),
            in_rows.size(),
            in_cols.size(),
            stride,
            row_stride,
            col_stride};
  }
  Matrices transposed() const {
    return {data, type, count, cols, rows, stride, col_stride, row_stride};
  }
  Range all() const { return {0, count}; }
  Range all_rows() const { return {0, rows}; }
  Range all_cols() const { return {0, cols}; }
};

inline Tensor tensor_of(const Matrices& m) {
  const int64_t sizes[] = {m.count, m.rows, m.cols};
  const int64_t strides[] = {m.stride, m.row_stride, m.col_stride};
  const size_t skip = m.count == 1 ? 1 : 0;
  return on_memory(m.data, Sizes(sizes + skip, 3 - skip), Sizes(strides + skip, 3 - skip),
                   dtype_of(m.type));
}

inline void multiply(const Matrices& a, const Matrices& b, const Matrices& out) {
  multiply_into(tensor_of(out), tensor_of(a), tensor_of(b));
}

inline void convert(const Matrices& from, const Matrices& to) {
  copy(tensor_of(from), tensor_of(to));
}

// Memory for matrices, contiguous where nothing else is said, taken when it is needed.
class Buffer {
 public:
  explicit Buffer(ScalarType type) : type_(type) {}

  Matrices hold(int64_t count, int64_t rows, int64_t cols) { return hold(count, rows, cols, cols); }

  // With rows that are `row_stride` elements apart.
  Matrices hold(int64_t count, int64_t rows, int64_t cols, int64_t row_stride) {
    const size_t bytes = static_cast<size_t>(count * rows * row_stride * bytes_of(type_));
    if (bytes > bytes_) {
      memory_ = std::make_unique<Scratch<std::byte>>(bytes);
      bytes_ = bytes;
    }
    return {memory_->get(), type_, count, rows, cols, rows * row_stride, row_stride, 1};
  }

 private:
  ScalarType type_;
  size_t bytes_ = 0;
  std::unique_ptr<Scratch<std::byte>> memory_;
};

}  // namespace fused_dropout
