// IMPL(CPU) of dropout: checks, cutting the work, parallel_for.
//
// Where the elements lie in the order of their mask bits, each thread draws the bits of its stretch
// just before it uses them. Everything else (shared dimensions, channels_last, transposed inputs)
// draws the packed mask first (masked_elements.h).
#include "dropout.h"

#include <algorithm>

#include "../ops/dropout.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "masked_elements.h"

namespace fused_dropout::dropout {
namespace {

void run_linear(const MaskedWork& work, const MaskRule& rule) {
  const auto apply = work.table.draw_and_apply[work.type];
  parallel_for(0, group_count(work.all.count), kGrainGroups, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kGroupColumns;
    const int64_t count = std::min(work.all.count, end * kGroupColumns) - first;
    apply(rule, work.map, work.run(first, count), static_cast<uint64_t>(begin));
  });
}

void run_dropout(const MaskedWork& work, const MaskLayout& layout, const MaskRule& rule) {
  if (layout.is_linear()) return run_linear(work, rule);
  const Scratch<uint32_t> bits = draw_all_bits(rule, layout.mask_numel);
  run_masked(work, layout, bits.get());
}

// `out` has the strides of `input`, which has no gaps.
void apply_into(const Tensor& out, const Tensor& input, const std::optional<Tensor>& residual,
                const Tensor& rng_state, double p, Sizes shared_dims, const AffineMap& map) {
  if (input.numel() == 0) return;
  const MaskLayout layout = mask_layout(input, shared_dims);
  std::optional<Tensor> addend;
  if (residual.has_value()) addend = like_in_memory(*residual, input);
  const MaskedWork work{
      kernels<Kernels>(),
      kernel_index(input),
      static_cast<int64_t>(input.element_size()),
      map,
      {input.const_data_ptr(), data_or_null<void>(addend), out.mutable_data_ptr(), input.numel()}};
  run_dropout(work, layout, rule_from_cpu_state(rng_state, p, kStreamMask, kDefaultDigits));
}

Tensor forward(const Tensor& input, const std::optional<Tensor>& residual, const Tensor& rng_state,
               double p, double scale, std::optional<Sizes> shared_dims, double shift,
               double fill) {
  check_arguments(input, residual, p);
  const Tensor dense = without_gaps(input);
  Tensor out = is_same(dense, input) ? fresh_output(input) : dense;  // a copy is ours to change
  apply_into(out, dense, residual, rng_state, p, shared_dims.value_or(Sizes()),
             {scale, shift, fill});
  return out;
}

Tensor forward_(const Tensor& input, const std::optional<Tensor>& residual, const Tensor& rng_state,
                double p, double scale, std::optional<Sizes> shared_dims, double shift,
                double fill) {
  check_arguments(input, residual, p);
  check_no_overlap(input);
  const Tensor dense = without_gaps(input);
  apply_into(dense, dense, residual, rng_state, p, shared_dims.value_or(Sizes()),
             {scale, shift, fill});
  if (!is_same(dense, input)) copy(dense, input);
  return input;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("dropout", TORCH_BOX(&forward));
  m.impl("dropout_", TORCH_BOX(&forward_));
}

}  // namespace fused_dropout::dropout
