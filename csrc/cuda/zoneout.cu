// IMPL(CUDA) of zoneout: checks and launches on the current stream.
//
// Workspace, freed to the caching allocator on return: the packed mask, for elements that do not
// lie in the order of their mask bits.
#include "../ops/zoneout.h"

#include <tuple>

#include "binding.h"
#include "zoneout.cuh"

namespace fused_dropout::zoneout {
namespace {

// Calls f with a null pointer to the unsigned number of the size of `tensor`'s elements.
template <class F>
void with_bits(const Tensor& tensor, F f) {
  switch (tensor.element_size()) {
    case 2:
      return f(static_cast<uint16_t*>(nullptr));
    case 4:
      return f(static_cast<uint32_t*>(nullptr));
    default:
      return f(static_cast<uint64_t*>(nullptr));
  }
}

// `dense` has no gaps, and all tensors of the run have its strides.
template <class U, class Run>
void launch_pass(const Run& run, const Tensor& dense, const RngSource& rng, double p) {
  if (run.count == 0) return;
  const MaskLayout layout = mask_layout(dense, Sizes());
  const MaskRule rule = unseeded_rule(p, kStreamMask, kDefaultDigits);
  if (layout.is_linear()) {
    check_launch(launch_linear<U>(rule, rng, run, current_stream()));
    return;
  }
  const Tensor bits = draw_bits(rule, rng, group_count(layout.mask_numel), dense);
  check_launch(
      launch_masked<U>(data_of<uint32_t>(bits), masked_dims(layout), run, current_stream()));
}

template <class U>
const U* bits_of(const Tensor& tensor) {
  return static_cast<const U*>(tensor.const_data_ptr());
}
template <class U>
U* mutable_bits_of(const Tensor& tensor) {
  return static_cast<U*>(tensor.mutable_data_ptr());
}

Tensor forward(const Tensor& input, const Tensor& previous, const Tensor& rng_state, double p) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, previous, p);
  const RngSource rng = rng_source(rng_state, device_of(input));
  const Tensor dense = without_gaps(input);
  const Tensor other = like_in_memory(previous, dense);
  const Tensor out = new_like(dense);
  with_bits(dense, [&](auto* type) {
    using U = std::remove_pointer_t<decltype(type)>;
    const Selection<U> run = {bits_of<U>(dense), bits_of<U>(other), mutable_bits_of<U>(out),
                              dense.numel()};
    launch_pass<U>(run, dense, rng, p);
  });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& rng_state, double p) {
  const auto guard = device_guard(grad, "grad");
  check_arguments(grad, p);
  const RngSource rng = rng_source(rng_state, device_of(grad));
  const Tensor dense = without_gaps(grad);
  const Tensor d_input = new_like(dense);
  const Tensor d_previous = new_like(dense);
  with_bits(dense, [&](auto* type) {
    using U = std::remove_pointer_t<decltype(type)>;
    const Split<U> run = {bits_of<U>(dense), mutable_bits_of<U>(d_input),
                          mutable_bits_of<U>(d_previous), dense.numel()};
    launch_pass<U>(run, dense, rng, p);
  });
  return {d_input, d_previous};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("zoneout", TORCH_BOX(&forward));
  m.impl("zoneout_backward", TORCH_BOX(&backward));
}

}  // namespace fused_dropout::zoneout
