// IMPL(CUDA) of DropConnect's moments: checks, one launch on the current stream.
#include <tuple>

#include "../ops/dropconnect_moments.h"
#include "binding.h"
#include "dropconnect_moments.cuh"

namespace fused_dropout::dropconnect_moments {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight,
                                   const std::optional<Tensor>& bias, double mean_scale,
                                   double variance_scale, bool mask_bias) {
  const auto guard = device_guard(input, "input");
  const MomentsProblem problem =
      make_problem(input, weight, bias, mean_scale, variance_scale, mask_bias);
  Tensor mean = empty({problem.rows, problem.out_features}, sum_dtype(input), input);
  Tensor variance = empty({problem.rows, problem.out_features}, sum_dtype(input), input);
  with_type(input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    check_launch(launch<T>(problem, mutable_data_of<Real<T>>(mean),
                           mutable_data_of<Real<T>>(variance), current_stream()));
  });
  return {mean, variance};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("dropconnect_moments", TORCH_BOX(&forward));
}

}  // namespace fused_dropout::dropconnect_moments
