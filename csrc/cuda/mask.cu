// IMPL(CUDA) of the mask operators.
#include "../ops/mask.h"

#include "binding.h"

namespace fused_dropout::mask {
namespace {

Tensor draw(const Tensor& rng_state, int64_t rows, int64_t cols, double p, int64_t stream,
            int64_t digits) {
  check_arguments(rows, cols, p, stream, digits);
  const auto guard = device_guard(rng_state, "rng_state");
  const RngSource rng = rng_source(rng_state, device_of(rng_state));
  Tensor mask = empty({rows, cols}, dtypes().boolean, rng_state);
  check_launch(launch_draw_bytes(unseeded_rule(p, stream, digits), rng, 0, rows, cols,
                                 mutable_data_of<uint8_t>(mask), current_stream()));
  return mask;
}

Tensor draw_packed(const Tensor& rng_state, int64_t rows, int64_t cols, double p, int64_t stream,
                   int64_t digits) {
  check_arguments(rows, cols, p, stream, digits);
  const auto guard = device_guard(rng_state, "rng_state");
  const RngSource rng = rng_source(rng_state, device_of(rng_state));
  Tensor bits = empty({rows, ceil_div(cols, 32)}, dtypes().int32, rng_state);
  check_launch(launch_draw_packed(unseeded_rule(p, stream, digits), rng, 0, rows, cols,
                                  mutable_data_of<uint32_t>(bits), current_stream()));
  return bits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("mask", TORCH_BOX(&draw));
  m.impl("packed_mask", TORCH_BOX(&draw_packed));
}

}  // namespace fused_dropout::mask
