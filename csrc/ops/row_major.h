// Tensors in row-major order, for kernels that count elements that way.
#pragma once

#include "../torch_abi.h"

namespace fused_dropout {

// Whether torch's own results on `input` are surely in row-major order: its strides descend.
inline bool has_row_major_results(const Tensor& input) {
  if (input.is_contiguous()) return true;
  const Sizes strides = input.strides();
  for (size_t d = 1; d < strides.size(); ++d) {
    if (strides[d] >= strides[d - 1]) return false;
  }
  return strides.empty() || strides[strides.size() - 1] > 0;
}

// `dense`, which was computed from row_major(input), with the strides of torch's own results on
// `input`.
inline Tensor laid_out_like(const Tensor& input, const Tensor& dense) {
  return has_row_major_results(input) ? dense : copy_like(dense, input);
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
