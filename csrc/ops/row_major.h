// Tensors in row-major order, for kernels that count elements that way.
#pragma once

#include "../torch_abi.h"

namespace fused_dropout {

// `dense`, which was computed from row_major(input), with the strides of torch's own results on
// `input`.
inline Tensor laid_out_like(const Tensor& input, const Tensor& dense) {
  if (input.is_contiguous()) return dense;
  Tensor out = new_like(input);
  if (same_sizes(out.strides(), dense.strides())) return dense;
  copy(dense, out);
  return out;
}

// Calls change(tensor) on a row-major tensor that holds `input`, and leaves the result in `input`.
template <class F>
void change_in_place(const Tensor& input, F change) {
  check_no_overlap(input);
  const Tensor dense = row_major(input);
  change(dense);
  if (!is_same(dense, input)) copy(dense, input);
}

}  // namespace fused_dropout
