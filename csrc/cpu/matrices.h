// Products, conversions and buffers of matrices on the CPU.
#pragma once

#include <memory>

#include "../ops/matrices.h"
#include "scratch.h"

namespace fused_dropout {

inline Device cpu() { return {aoti_torch_device_type_cpu(), 0}; }

inline void multiply(const Matrices& a, const Matrices& b, const Matrices& out) {
  multiply(a, b, out, cpu());
}

inline void convert(const Matrices& from, const Matrices& to) {
  copy(tensor_of(from, cpu()), tensor_of(to, cpu()));
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
