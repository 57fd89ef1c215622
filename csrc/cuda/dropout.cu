// IMPL(CUDA) of dropout: checks and launches on the current stream.
//
// Workspace, freed to the caching allocator on return: the packed mask, for elements that neither
// lie in the order of their mask bits nor share them with enough neighbours.
#include "../ops/dropout.h"

#include "../ops/mask_layout.h"
#include "binding.h"
#include "dropout.cuh"

namespace fused_dropout::dropout {
namespace {

// `out` has the strides of `input`, which has no gaps.
void apply_into(const Tensor& out, const Tensor& input, const std::optional<Tensor>& residual,
                const RngSource& rng, double p, Sizes shared_dims, const AffineMap& map) {
  if (input.numel() == 0) return;
  const MaskLayout layout = mask_layout(input, shared_dims);
  const MaskRule rule = unseeded_rule(p, kStreamMask, kDefaultDigits);
  std::optional<Tensor> addend;
  if (residual.has_value()) addend = like_in_memory(*residual, input);
  with_type(input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Operands<T> tensors = {data_of<T>(input), data_or_null<T>(addend),
                                 mutable_data_of<T>(out), input.numel()};
    if (layout.is_linear()) {
      check_launch(launch_linear<T>(rule, rng, map, tensors, current_stream()));
      return;
    }
    const MaskedDims dims = masked_dims(layout);
    if (draws_by_tile(dims, tensors.count)) {
      check_launch(launch_shared<T>(rule, rng, dims, map, tensors, current_stream()));
      return;
    }
    if (draws_by_columns(dims, tensors.count)) {
      check_launch(launch_columns<T>(rule, rng, dims, map, tensors, current_stream()));
      return;
    }
    const Tensor bits = draw_bits(rule, rng, group_count(layout.mask_numel), input);
    check_launch(launch_masked<T>(data_of<uint32_t>(bits), dims, one_map<T>(map), tensors,
                                  current_stream()));
  });
}

Tensor forward(const Tensor& input, const std::optional<Tensor>& residual, const Tensor& rng_state,
               double p, double scale, std::optional<Sizes> shared_dims, double shift,
               double fill) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, residual, p);
  const RngSource rng = rng_source(rng_state, device_of(input));
  const Tensor dense = without_gaps(input);
  Tensor out = is_same(dense, input) ? new_like(input) : dense;  // a copy is ours to change
  apply_into(out, dense, residual, rng, p, shared_dims.value_or(Sizes()), {scale, shift, fill});
  return out;
}

Tensor forward_(const Tensor& input, const std::optional<Tensor>& residual, const Tensor& rng_state,
                double p, double scale, std::optional<Sizes> shared_dims, double shift,
                double fill) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, residual, p);
  const RngSource rng = rng_source(rng_state, device_of(input));
  check_no_overlap(input);
  const Tensor dense = without_gaps(input);
  apply_into(dense, dense, residual, rng, p, shared_dims.value_or(Sizes()), {scale, shift, fill});
  if (!is_same(dense, input)) copy(dense, input);
  return input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("dropout", TORCH_BOX(&forward));
  m.impl("dropout_", TORCH_BOX(&forward_));
}

}  // namespace fused_dropout::dropout
