// Tensors in row-major order, for kernels that count elements that way.
#pragma once

#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>

namespace fused_dropout {

// `dense`, which was computed from `input.contiguous()`, with the strides of torch's own results on
// `input`.
inline at::Tensor laid_out_like(const at::Tensor& input, const at::Tensor& dense) {
  return input.is_contiguous() ? dense : at::empty_like(input).copy_(dense);
}

// Calls change(tensor) on a row-major tensor that holds `input`, and leaves the result in `input`.
template <class F>
void change_in_place(const at::Tensor& input, F change) {
  at::assert_no_internal_overlap(input);
  const at::Tensor dense = input.contiguous();
  change(dense);
  if (!dense.is_same(input)) input.copy_(dense);
}

}  // namespace fused_dropout
