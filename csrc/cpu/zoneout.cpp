// IMPL(CPU) of zoneout: checks, cutting the work, parallel_for.
//
// As dropout's: where the elements lie in the order of their mask bits, each thread draws those of
// its stretch just before it uses them; else the packed mask is drawn first (masked_elements.h).
#include "zoneout.h"

#include <algorithm>
#include <tuple>

#include "../ops/zoneout.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "masked_elements.h"

namespace fused_dropout::zoneout {
namespace {

Selection run_from(const Selection& all, int64_t first, int64_t count, int64_t bytes) {
  return {static_cast<const char*>(all.input) + first * bytes,
          static_cast<const char*>(all.previous) + first * bytes,
          static_cast<char*>(all.out) + first * bytes, count};
}

Split run_from(const Split& all, int64_t first, int64_t count, int64_t bytes) {
  return {static_cast<const char*>(all.grad) + first * bytes,
          static_cast<char*>(all.d_input) + first * bytes,
          static_cast<char*>(all.d_previous) + first * bytes, count};
}

// One pass over all elements, as masked_elements.h takes it.
template <class Run>
struct Work {
  const Pass<Run>& pass;
  int type;
  int64_t element_bytes;
  Run all;

  Run run(int64_t first, int64_t count) const { return run_from(all, first, count, element_bytes); }
  void apply(int64_t first, int64_t count, const uint32_t* bits) const {
    pass.apply[type](run(first, count), bits);
  }
  void apply_columns(int64_t first, const ColumnBits& tile, const uint32_t* bits) const {
    pass.apply_columns[type](run(first, 0), tile, bits);
  }
};

// `dense` has no gaps, and all tensors of the pass have its strides.
template <class Run>
void run_pass(const Pass<Run>& pass, const Run& all, const Tensor& dense, const Tensor& rng_state,
              double p) {
  const MaskRule rule = rule_from_cpu_state(rng_state, p, kStreamMask, kDefaultDigits);
  if (all.count == 0) return;
  const MaskLayout layout = mask_layout(dense, Sizes());
  const Work<Run> work{pass, kernel_index(dense), static_cast<int64_t>(dense.element_size()), all};
  if (!layout.is_linear()) {
    const Scratch<uint32_t> bits = draw_all_bits(rule, layout.mask_numel);
    return run_unshared(work, layout, bits.get());
  }
  const auto draw_and_apply = pass.draw_and_apply[work.type];
  parallel_for(0, group_count(all.count), kGrainGroups, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kGroupColumns;
    const int64_t count = std::min(all.count, end * kGroupColumns) - first;
    draw_and_apply(rule, work.run(first, count), static_cast<uint64_t>(begin));
  });
}

Tensor forward(const Tensor& input, const Tensor& previous, const Tensor& rng_state, double p) {
  check_arguments(input, previous, p);
  const Tensor dense = without_gaps(input);
  const Tensor other = like_in_memory(previous, dense);
  const Tensor out = fresh_output(dense);
  run_pass<Selection>(
      kernels<Kernels>().forward,
      {dense.const_data_ptr(), other.const_data_ptr(), out.mutable_data_ptr(), dense.numel()},
      dense, rng_state, p);
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& rng_state, double p) {
  check_arguments(grad, p);
  const Tensor dense = without_gaps(grad);
  const Tensor d_input = fresh_output(dense);
  const Tensor d_previous = fresh_output(dense);
  run_pass<Split>(kernels<Kernels>().backward,
                  {dense.const_data_ptr(), d_input.mutable_data_ptr(),
                   d_previous.mutable_data_ptr(), dense.numel()},
                  dense, rng_state, p);
  return {d_input, d_previous};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("zoneout", TORCH_BOX(&forward));
  m.impl("zoneout_backward", TORCH_BOX(&backward));
}

}  // namespace fused_dropout::zoneout
