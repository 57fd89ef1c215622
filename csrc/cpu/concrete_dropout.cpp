// IMPL(CPU) of concrete dropout.
//
// Where each element has its own uniform number, a pass over the elements draws it. Where
// dimensions share them, the factors of the mask's elements are computed first, and put in the
// order of the tensor's memory some hundred at a time.
#include "concrete_dropout.h"

#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../ops/concrete_dropout.h"
#include "../ops/row_major.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "layout_walk.h"
#include "parallel_noise.h"
#include "scratch.h"

namespace fused_dropout::concrete_dropout {
namespace {

Rate rate_of(const Tensor& logit_p, double temperature) {
  const bool is_double = dtype_of(logit_p) == dtypes().float64;
  const double logit = is_double ? *data_of<double>(logit_p) : *data_of<float>(logit_p);
  return {logit, 1.0 / (1.0 + 1.0 / std::exp(logit)), 1.0 / temperature};
}

constexpr int64_t kPiece = kGrainBlocks * kGroupColumns;  // elements that are summed by themselves

// Calls sum_of(first, count) for the pieces of `numel` elements, and adds what it returns: in an
// order that the number of elements alone sets.
template <class SumOf>
double sum_of_pieces(int64_t numel, SumOf sum_of) {
  std::vector<double> sums(static_cast<size_t>(ceil_div(numel, kPiece)));
  parallel_for(0, static_cast<int64_t>(sums.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece * kPiece;
      sums[static_cast<size_t>(piece)] = sum_of(first, std::min(kPiece, numel - first));
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

// A mask that dimensions share: the factors of its elements, and their slopes if they are wanted.
template <class R>
class SharedMask {
 public:
  // `input` has no gaps, and at least one element.
  SharedMask(const Tensor& input, Sizes shared_dims, const MaskRule& rule, const Rate& rate,
             bool with_slopes)
      : layout_(mask_layout(input, shared_dims)),
        factors_(static_cast<size_t>(layout_.mask_numel)),
        slopes_(static_cast<size_t>(with_slopes ? layout_.mask_numel : 0)),
        with_slopes_(with_slopes) {
    const auto factors = kernels<Kernels>().factors[kernel_index(input)];
    parallel_noise(rule, layout_.mask_numel, [&](const NoiseRun& run, int64_t first) {
      factors(run, rate, factors_.get() + first, with_slopes ? slopes_.get() + first : nullptr);
    });
  }

  // Calls f(first, count, factors, slopes) for stretches of elements begin .. end - 1, counted in
  // the order of memory.
  template <class F>
  void for_elements(int64_t begin, int64_t end, F f) const {
    constexpr int64_t kChunk = 4 * kGroupColumns;
    R factors[kChunk], slopes[kChunk];
    LayoutWalk walk(layout_.dims.data(), layout_.dims.size(), begin);
    for (int64_t first = begin; first < end; first += kChunk) {
      const int64_t count = std::min(kChunk, end - first);
      for (int64_t done = 0; done < count;) {
        const int64_t n = std::min(count - done, walk.left());
        gather(factors_.get() + walk.bit(), n, factors + done);
        if (with_slopes_) gather(slopes_.get() + walk.bit(), n, slopes + done);
        walk.advance(n);
        done += n;
      }
      f(first, count, factors, slopes);
    }
  }

 private:
  void gather(const R* from, int64_t count, R* to) const {
    const int64_t stride = layout_.dims.back().mask_stride;
    for (int64_t k = 0; k < count; ++k) to[k] = from[k * stride];
  }

  MaskLayout layout_;
  Scratch<R> factors_;
  Scratch<R> slopes_;
  bool with_slopes_;
};

// Calls f with a null pointer to the type that `tensor`'s elements are computed in.
template <class F>
auto with_computing_type(const Tensor& tensor, F f) {
  if (dtype_of(tensor) == dtypes().float64) return f(static_cast<double*>(nullptr));
  return f(static_cast<float*>(nullptr));
}

Tensor forward_shared(const Tensor& input, const MaskRule& rule, const Rate& rate,
                      Sizes shared_dims) {
  const Tensor in = without_gaps(input);
  const Tensor out = is_same(in, input) ? fresh_output(input) : in;  // a copy is ours to change
  const auto multiply = kernels<Kernels>().multiply[kernel_index(in)];
  with_computing_type(in, [&](auto* type) {
    using R = std::remove_pointer_t<decltype(type)>;
    const SharedMask<R> mask(in, shared_dims, rule, rate, false);
    parallel_for(0, in.numel(), kPiece, [&](int64_t begin, int64_t end) {
      mask.for_elements(begin, end, [&](int64_t first, int64_t count, const R* factors, const R*) {
        multiply(elements_from(in, first), factors, count, mutable_elements_from(out, first));
      });
    });
  });
  return out;
}

// In row-major order, as the sum is to be.
std::tuple<Tensor, double> backward_shared(const Tensor& grad_output, const Tensor& input,
                                           const MaskRule& rule, const Rate& rate,
                                           Sizes shared_dims) {
  const Tensor in = row_major(input);
  const Tensor grad = row_major(grad_output);
  const Tensor d_in = fresh_output(in);
  const auto multiply = kernels<Kernels>().multiply_and_sum[kernel_index(in)];
  const double d_logit = with_computing_type(in, [&](auto* type) {
    using R = std::remove_pointer_t<decltype(type)>;
    const SharedMask<R> mask(in, shared_dims, rule, rate, true);
    return sum_of_pieces(in.numel(), [&](int64_t begin, int64_t total) {
      double sum = 0;
      mask.for_elements(begin, begin + total,
                        [&](int64_t first, int64_t count, const R* factors, const R* slopes) {
                          sum +=
                              multiply(elements_from(grad, first), elements_from(in, first),
                                       factors, slopes, count, mutable_elements_from(d_in, first));
                        });
      return sum;
    });
  });
  return {d_in, d_logit};
}

Tensor forward(const Tensor& input, const Tensor& logit_p, const Tensor& rng_state,
               double temperature, std::optional<Sizes> shared_dims) {
  check_arguments(input, logit_p, temperature);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const Rate rate = rate_of(logit_p, temperature);
  if (input.numel() > 0 && shares_masks(shared_dims)) {
    return forward_shared(input, rule, rate, *shared_dims);
  }
  const auto apply = kernels<Kernels>().apply[kernel_index(input)];
  const Tensor in = row_major(input);
  const Tensor out = is_same(in, input) ? fresh_output(input) : in;  // a copy is ours to change
  parallel_noise(rule, in.numel(), [&](const NoiseRun& run, int64_t first) {
    apply(run, rate, elements_from(in, first), mutable_elements_from(out, first));
  });
  return laid_out_like(input, out);
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                    const Tensor& logit_p, const Tensor& rng_state,
                                    double temperature, std::optional<Sizes> shared_dims) {
  check_arguments(input, logit_p, temperature);
  check_operand(grad_output, "grad_output", input.sizes(), input);
  const MaskRule rule = noise_rule_from_cpu_state(rng_state);
  const Rate rate = rate_of(logit_p, temperature);
  const auto d_logit_of = [&](double sum) {
    return full(logit_p.sizes(), sum, dtype_of(logit_p), logit_p);
  };
  if (input.numel() > 0 && shares_masks(shared_dims)) {
    const auto [d_in, sum] = backward_shared(grad_output, input, rule, rate, *shared_dims);
    return {laid_out_like(input, d_in), d_logit_of(sum)};
  }
  const auto backward = kernels<Kernels>().backward[kernel_index(input)];
  const Tensor in = row_major(input);
  const Tensor grad = row_major(grad_output);
  const Tensor d_in = fresh_output(in);
  const double sum = sum_of_pieces(in.numel(), [&](int64_t first, int64_t count) {
    const NoiseRun run = {rule, static_cast<uint64_t>(first / kGroupColumns), count};
    return backward(run, rate, elements_from(grad, first), elements_from(in, first),
                    mutable_elements_from(d_in, first));
  });
  return {laid_out_like(input, d_in), d_logit_of(sum)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("concrete_dropout", TORCH_BOX(&forward));
  m.impl("concrete_dropout_backward", TORCH_BOX(&backward));
}

}  // namespace fused_dropout::concrete_dropout
