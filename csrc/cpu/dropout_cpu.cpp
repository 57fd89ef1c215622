// IMPL(CPU) of dropout: checks, cutting the work, at::parallel_for.
//
// Where the elements lie in the order of their mask bits, each thread draws the bits of its stretch
// just before it uses them. Everything else (shared dimensions, channels_last, transposed inputs)
// draws the packed mask first (masked_elements.h).
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "../dropout_layout.h"
#include "fresh_output.h"
#include "masked_elements.h"

namespace fused_dropout {
namespace {

using at::Tensor;

void run_linear(const MaskedWork& work, const MaskRule& rule) {
  const auto apply = work.table.draw_and_apply[work.type];
  at::parallel_for(0, group_count(work.all.count), kGrainGroups, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kGroupColumns;
    const int64_t count = std::min(work.all.count, end * kGroupColumns) - first;
    apply(rule, work.map, work.run(first, count), static_cast<uint64_t>(begin));
  });
}

void run_dropout(const MaskedWork& work, const DropoutLayout& layout, const MaskRule& rule) {
  if (layout.is_linear()) return run_linear(work, rule);
  const Tensor bits = draw_all_bits(rule, layout.mask_numel);
  run_masked(work, layout, static_cast<const uint32_t*>(bits.const_data_ptr()));
}

// `out` has the strides of `input`, which has no gaps.
void dropout_into(const Tensor& out, const Tensor& input, const std::optional<Tensor>& residual,
                  const Tensor& rng_state, double p, at::IntArrayRef shared_dims,
                  const AffineMap& map) {
  if (input.numel() == 0) return;
  const DropoutLayout layout = dropout_layout(input, shared_dims);
  Tensor addend;
  if (residual.has_value()) addend = like_in_memory(*residual, input);
  const MaskedWork work{
      kernels().dropout,
      static_cast<int>(kernel_type(input)),
      input.element_size(),
      map,
      {input.const_data_ptr(), addend.defined() ? addend.const_data_ptr() : nullptr,
       out.mutable_data_ptr(), input.numel()}};
  run_dropout(work, layout, rule_from_cpu_state(rng_state, p, kStreamMask, kDefaultDigits));
}

Tensor dropout_cpu(const Tensor& input, const std::optional<Tensor>& residual,
                   const Tensor& rng_state, double p, double scale,
                   c10::OptionalArrayRef<int64_t> shared_dims, double shift, double fill) {
  check_dropout_arguments(input, residual, p);
  const Tensor dense = without_gaps(input);
  Tensor out = dense.is_same(input) ? fresh_output(input) : dense;  // a copy is ours to change
  dropout_into(out, dense, residual, rng_state, p, shared_dims.value_or(at::IntArrayRef{}),
               {scale, shift, fill});
  return out;
}

Tensor dropout_cpu_(const Tensor& input, const std::optional<Tensor>& residual,
                    const Tensor& rng_state, double p, double scale,
                    c10::OptionalArrayRef<int64_t> shared_dims, double shift, double fill) {
  check_dropout_arguments(input, residual, p);
  at::assert_no_internal_overlap(input);
  const Tensor dense = without_gaps(input);
  dropout_into(dense, dense, residual, rng_state, p, shared_dims.value_or(at::IntArrayRef{}),
               {scale, shift, fill});
  if (!dense.is_same(input)) input.copy_(dense);
  return input;
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("dropout", dropout_cpu);
  m.impl("dropout_", dropout_cpu_);
}

}  // namespace fused_dropout
