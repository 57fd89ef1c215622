// IMPL(CUDA) of concrete dropout. logit_p stays on the device: nothing waits for it.
//
// Workspace, freed to the caching allocator on return: the partial sums of logit_p's gradient, and
// the factors of a mask that dimensions share.
#include <optional>
#include <tuple>

#include "../ops/concrete_dropout.h"
#include "../ops/row_major.h"
#include "binding.h"
#include "concrete_dropout.cuh"

namespace fused_dropout::concrete_dropout {
namespace {

template <class T>
Source<Real<T>> source_of(const Tensor& logit_p, double temperature) {
  return {data_of<Real<T>>(logit_p), static_cast<Real<T>>(1.0 / temperature)};
}

// A mask that dimensions share: its factors, and its slopes if they are wanted.
template <class S>
struct SharedMask {
  Tensor numbers;
  MaskFactors<S> factors;
  MaskedDims dims;

  // `input` has no gaps, and at least one element.
  SharedMask(const Tensor& input, Sizes shared_dims, const RngSource& rng, const Source<S>& source,
             const Tensor& logit_p, bool with_slopes)
      : SharedMask(mask_layout(input, shared_dims), rng, source, logit_p, with_slopes) {}

 private:
  SharedMask(const MaskLayout& layout, const RngSource& rng, const Source<S>& source,
             const Tensor& logit_p, bool with_slopes)
      : numbers(
            empty({with_slopes ? 2 : 1, padded(layout.mask_numel)}, dtype_of(logit_p), logit_p)),
        dims(masked_dims(layout)) {
    factors.factors = mutable_data_of<S>(numbers);
    factors.slopes = with_slopes ? factors.factors + padded(layout.mask_numel) : nullptr;
    check_launch(launch_factors<S>(unseeded_noise_rule(), rng, source, factors, layout.mask_numel,
                                   current_stream()));
  }

  // So that the slopes too are aligned to 16 bytes.
  static int64_t padded(int64_t count) { return ceil_div(count, kVector<S>) * kVector<S>; }
};

Tensor forward(const Tensor& input, const Tensor& logit_p, const Tensor& rng_state,
               double temperature, std::optional<Sizes> shared_dims) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, logit_p, temperature);
  const RngSource rng = rng_source(rng_state, device_of(input));
  const bool is_shared = input.numel() > 0 && shares_masks(shared_dims);
  const Tensor in = is_shared ? without_gaps(input) : row_major(input);
  const Tensor out = is_same(in, input) ? new_like(input) : in;  // a copy is ours to change
  with_type(in, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Source<Real<T>> source = source_of<T>(logit_p, temperature);
    if (is_shared) {
      const SharedMask<Real<T>> mask(in, *shared_dims, rng, source, logit_p, false);
      check_launch(launch_shared_forward<T>(mask.factors.factors, mask.dims, data_of<T>(in),
                                            mutable_data_of<T>(out), in.numel(), current_stream()));
    } else {
      check_launch(launch_forward<T>(unseeded_noise_rule(), rng, source, data_of<T>(in),
                                     mutable_data_of<T>(out), in.numel(), current_stream()));
    }
  });
  return is_shared ? out : laid_out_like(input, out);
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                    const Tensor& logit_p, const Tensor& rng_state,
                                    double temperature, std::optional<Sizes> shared_dims) {
  const auto guard = device_guard(input, "input");
  check_arguments(input, logit_p, temperature);
  check_operand(grad_output, "grad_output", input.sizes(), input);
  const RngSource rng = rng_source(rng_state, device_of(input));
  const Tensor grad = row_major(grad_output);
  const Tensor in = row_major(input);
  const Tensor d_in = new_like(in);
  const Tensor d_logit = new_like(logit_p);
  with_type(in, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t blocks = noise_blocks<T>(in.numel()).x;
    const Tensor partial = empty({blocks}, dtype_of(logit_p), logit_p);
    const Gradients<T> tensors = {data_of<T>(grad), data_of<T>(in), mutable_data_of<T>(d_in),
                                  mutable_data_of<Real<T>>(partial), in.numel()};
    const Source<Real<T>> source = source_of<T>(logit_p, temperature);
    Real<T>* const sum = mutable_data_of<Real<T>>(d_logit);
    if (in.numel() > 0 && shares_masks(shared_dims)) {
      const SharedMask<Real<T>> mask(in, *shared_dims, rng, source, logit_p, true);
      check_launch(
          launch_shared_backward<T>(mask.factors, mask.dims, tensors, sum, current_stream()));
    } else {
      check_launch(
          launch_backward<T>(unseeded_noise_rule(), rng, source, tensors, sum, current_stream()));
    }
  });
  return {laid_out_like(input, d_in), d_logit};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CUDA, m) {
  m.impl("concrete_dropout", TORCH_BOX(&forward));
  m.impl("concrete_dropout_backward", TORCH_BOX(&backward));
}

}  // namespace fused_dropout::concrete_dropout
