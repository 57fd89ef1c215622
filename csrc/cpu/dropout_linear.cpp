// IMPL(CPU) of linear layers whose input is dropped: dropout's kernels and torch's product.
#include "../ops/dropout_linear.h"

#include "../ops/dropped_row_products.h"
#include "dispatch.h"
#include "dropout.h"
#include "parallel.h"

namespace fused_dropout::dropout_linear {
namespace {

constexpr int64_t kGrainGroups = 256;  // a task's 32768 elements take about 10 us

class OnCpu {
 public:
  // A block of floats has 4 MiB. The product packs the weight anew for each block, so that a block
  // should have hundreds of rows at usual widths.
  static constexpr int64_t kBlockElements = 1 << 20;

  OnCpu(const Tensor& rng_state, double p, double scale)
      : rule_(rule_from_cpu_state(rng_state, p, kStreamMask, kDefaultDigits)), scale_(scale) {}

  void drop(ScalarType type, const void* in, void* out, int64_t count, int64_t first_group) const {
    const auto apply = kernels<dropout::Kernels>().draw_and_apply[static_cast<int>(type)];
    for_each_part(type, {in, nullptr, out, count}, [&](const dropout::Run& part, int64_t group) {
      apply(rule_, {scale_, 0, 0}, part, static_cast<uint64_t>(first_group + group));
    });
  }

  void add(const Tensor& part, const Tensor& sums) const {
    const ScalarType type = kernel_type(sums);
    const auto apply = kernels<dropout::Kernels>().apply_alike[static_cast<int>(type)];
    for_each_part(
        type, {part.const_data_ptr(), sums.const_data_ptr(), sums.mutable_data_ptr(), sums.numel()},
        [&](const dropout::Run& some, int64_t) { apply({1, 0, 0}, some, true); });
  }

 private:
  // Calls f(part, group) for parts of `all` that begin with a group, the one of that number.
  template <class F>
  static void for_each_part(ScalarType type, const dropout::Run& all, const F& f) {
    parallel_for(0, group_count(all.count), kGrainGroups, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kGroupColumns;
      const auto at = [&](const void* base) {
        return base == nullptr ? nullptr : static_cast<const char*>(base) + first * bytes_of(type);
      };
      f({at(all.in), at(all.residual), const_cast<char*>(at(all.out)),
         std::min(all.count, end * kGroupColumns) - first},
        begin);
    });
  }

  MaskRule rule_;
  double scale_;
};

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const Tensor& rng_state, double p, double scale) {
  check_forward(input, weight, bias, p);
  const OnCpu backend(rng_state, p, scale);
  return DroppedRowProducts(backend, device_of(input)).output(input, weight, bias);
}

Tensor d_input(const Tensor& grad_output, const Tensor& weight, const Tensor& rng_state, double p,
               double scale) {
  check_d_input(grad_output, weight, p);
  const OnCpu backend(rng_state, p, scale);
  return DroppedRowProducts(backend, device_of(weight)).d_input(grad_output, weight);
}

Tensor d_weight(const Tensor& grad_output, const Tensor& input, const Tensor& rng_state, double p,
                double scale) {
  check_d_weight(grad_output, input, p);
  const OnCpu backend(rng_state, p, scale);
  return DroppedRowProducts(backend, device_of(input)).d_weight(grad_output, input);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("dropout_linear", TORCH_BOX(&forward));
  m.impl("dropout_linear_d_input", TORCH_BOX(&d_input));
  m.impl("dropout_linear_d_weight", TORCH_BOX(&d_weight));
}

}  // namespace fused_dropout::dropout_linear
