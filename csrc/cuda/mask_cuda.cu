// IMPL(CUDA) of the mask operators.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "binding.h"

namespace fused_dropout {
namespace {

at::Tensor mask_cuda(const at::Tensor& rng_state, int64_t rows, int64_t cols, double p,
                     int64_t stream, int64_t digits) {
  check_mask_arguments(p, rows, cols, stream, digits);
  const auto guard = device_guard(rng_state, "rng_state");
  const RngSource rng = rng_source(rng_state, rng_state.device());
  at::Tensor mask = at::empty({rows, cols}, rng_state.options().dtype(at::kBool));
  check_launch(launch_draw_bytes(unseeded_rule(p, stream, digits), rng, 0, rows, cols,
                                 static_cast<uint8_t*>(mask.mutable_data_ptr()), current_stream()));
  return mask;
}

at::Tensor packed_mask_cuda(const at::Tensor& rng_state, int64_t rows, int64_t cols, double p,
                            int64_t stream, int64_t digits) {
  check_mask_arguments(p, rows, cols, stream, digits);
  const auto guard = device_guard(rng_state, "rng_state");
  const RngSource rng = rng_source(rng_state, rng_state.device());
  at::Tensor bits = at::empty({rows, ceil_div(cols, 32)}, rng_state.options().dtype(at::kInt));
  check_launch(launch_draw_packed(unseeded_rule(p, stream, digits), rng, 0, rows, cols,
                                  static_cast<uint32_t*>(bits.mutable_data_ptr()),
                                  current_stream()));
  return bits;
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("mask", mask_cuda);
  m.impl("packed_mask", packed_mask_cuda);
}

}  // namespace fused_dropout
