// IMPL(CUDA) of the mask operators.

#include "binding.h"

namespace fused_dropout::mask {
namespace {

Tensor mask_cuda(const Tensor& rng_state, int64_t rows, int64_t cols, double p,
                     int64_t stream, int64_t digits) {
  check_mask_arguments(p, rows, cols, stream, digits);
  const auto guard = device_guard(rng_state, "rng_state");
  const RngSource rng = rng_source(rng_state, device_of(rng_state));
  Tensor mask = at::empty({rows, cols}, rng_state.options().dtype(at::kBool));
  check_launch(launch_draw_bytes(unseeded_rule(p, stream, digits), rng, 0, rows, cols,
                                 mutable_data_of<uint8_t>(mask), current_stream()));
  return mask;
}

Tensor packed_mask_cuda(const Tensor& rng_state, int64_t rows, int64_t cols, double p,
                            int64_t stream, int64_t digits) {
  check_mask_arguments(p, rows, cols, stream, digits);
  const auto guard = device_guard(rng_state, "rng_state");
  const RngSource rng = rng_source(rng_state, device_of(rng_state));
  Tensor bits = at::empty({rows, ceil_div(cols, 32)}, rng_state.options().dtype(at::kInt));
  check_launch(launch_draw_packed(unseeded_rule(p, stream, digits), rng, 0, rows, cols,
                                  mutable_data_of<uint32_t>(bits),
                                  current_stream()));
  return bits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("mask", TORCH_BOX(&mask_cuda));
  m.impl("packed_mask", TORCH_BOX(&packed_mask_cuda));
}

}  // namespace fused_dropout::mask
