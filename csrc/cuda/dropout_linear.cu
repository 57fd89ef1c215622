// IMPL(CUDA) of linear layers whose input is dropped: dropout's kernel and torch's product, on the
// current stream.
//
// Workspace, freed to the caching allocator on return: ops/dropped_row_products.h. What is launched
// depends on shapes alone, and nothing waits for the device.
//
// Floor: the product's, and a copy's of the input. Predicted, not measured, on an H200 (4.3 TB/s of
// memory; a block in bf16 has 8 MiB and stays in the 50 MiB of level-2 cache until the product
// reads it): dropout_linear of [8192, 2048] by [16, 2048] in bf16 is 4 blocks, 8 launches. Reading
// 32 MiB takes 8 us, the dropping kernel 0.96 of a copy's speed with the writes in cache, the
// products 2 us each; 4 us between the kernels: 20 to 30 us, of which the dropped copy would have
// taken as long and 32 MiB that stay.
#include "../ops/dropout_linear.h"

#include "../ops/dropped_row_products.h"
#include "binding.h"
#include "dropout.cuh"

namespace fused_dropout::dropout_linear {
namespace {

class OnCuda {
 public:
  static constexpr int64_t kBlockElements = 1 << 22;

  OnCuda(const Tensor& rng_state, Device device, double p, double scale)
      : rule_(unseeded_rule(p, kStreamMask, kDefaultDigits)),
        rng_(rng_source(rng_state, device)),
        scale_(scale) {}

  void drop(ScalarType type, const void* in, void* out, int64_t count, int64_t first_group) const {
    launch(type, rule_, {scale_, 0, 0}, in, nullptr, out, count, first_group);
  }

  void add(const Tensor& part, const Tensor& sums) const {
    launch(kernel_type(sums), unseeded_rule(0, kStreamMask, kDefaultDigits), {1, 0, 0},
           part.const_data_ptr(), sums.const_data_ptr(), sums.mutable_data_ptr(), sums.numel(), 0);
  }

 private:
  void launch(ScalarType type, const MaskRule& rule, const AffineMap& map, const void* in,
              const void* residual, void* out, int64_t count, int64_t first_group) const {
    with_type(type, [&](auto* element) {
      using T = std::remove_pointer_t<decltype(element)>;
      const dropout::Operands<T> operands = {
          static_cast<const T*>(in), static_cast<const T*>(residual), static_cast<T*>(out), count};
      check_launch(
          dropout::launch_linear<T>(rule, rng_, map, operands, current_stream(), first_group));
    });
  }

  MaskRule rule_;
  RngSource rng_;
  double scale_;
};

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const Tensor& rng_state, double p, double scale) {
  const auto guard = device_guard(input, "input");
  check_forward(input, weight, bias, p);
  const OnCuda backend(rng_state, device_of(input), p, scale);
  return DroppedRowProducts(backend, device_of(input)).output(input, weight, bias);
}

Tensor d_input(const Tensor& grad_output, const Tensor& weight, const Tensor& rng_state, double p,
               double scale) {
  const auto guard = device_guard(weight, "weight");
  check_d_input(grad_output, weight, p);
  const OnCuda backend(rng_state, device_of(weight), p, scale);
  return DroppedRowProducts(backend, device_of(weight)).d_input(grad_output, weight);
}

Tensor d_weight(const Tensor& grad_output, const Tensor& input, const Tensor& rng_state, double p,
                double scale) {
  const auto guard = device_guard(input, "input");
  check_d_weight(grad_output, input, p);
  const OnCuda backend(rng_state, device_of(input), p, scale);
  return DroppedRowProducts(backend, device_of(input)).d_weight(grad_output, input);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("dropout_linear", TORCH_BOX(&forward));
  m.impl("dropout_linear_d_input", TORCH_BOX(&d_input));
  m.impl("dropout_linear_d_weight", TORCH_BOX(&d_weight));
}

}  // namespace fused_dropout::dropout_linear
