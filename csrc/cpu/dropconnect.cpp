// IMPL(CPU) of the DropConnect operators: checks, cutting the work, parallel_for.
//
// Every element of a result is summed in an order that depends on the shapes alone, so results do
// not change with the number of threads; the cuts below are free to.
#include "dropconnect.h"

#include <algorithm>
#include <tuple>

#include "../ops/dropconnect.h"
#include "dispatch.h"
#include "dropconnect_shared.h"
#include "fresh_output.h"
#include "mask.h"
#include "parallel.h"
#include "scratch.h"

namespace fused_dropout::dropconnect {
namespace {

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kSerialWork = 1 << 15;
constexpr int64_t kOutsStep = 32;  // cuts of output features and rows fall on multiples of this

MaskRule weight_rule(const Layer& layer, const Tensor& rng_state) {
  return rule_from_cpu_state(rng_state, layer.p, kStreamMask, kDefaultDigits);
}

// The packed bias masks [masks, groups of output features], drawn in one go: they are tiny.
Scratch<uint32_t> draw_bias_bits(const Layer& layer, const Tensor& rng_state) {
  const MaskRule rule = rule_from_cpu_state(rng_state, layer.p, kStreamBias, kDefaultDigits);
  const int64_t groups = layer.masks * group_count(layer.out_features);
  Scratch<uint32_t> bits(static_cast<size_t>(groups * kGroupWords));
  kernels<mask::Kernels>().draw_groups(rule, 0, 1, groups, bits.get());
  return bits;
}

Tensor draw_mask_bits(const Tensor& weight, const Tensor& rng_state, int64_t masks, double p,
                      int64_t first_mask) {
  const Layer layer = layer_of_masks(weight, masks, p, first_mask);
  const MaskRule rule = weight_rule(layer, rng_state);
  Tensor bits = on_huge_pages(empty(stored_shape(layer), dtypes().int32, weight));
  if (bits.numel() == 0) return bits;
  const auto& table = kernels<mask::Kernels>();
  const int64_t groups = bits.size(0);
  const int64_t outs = bits.size(2);
  uint32_t* out = mutable_data_of<uint32_t>(bits);
  parallel_for(0, groups * masks, ceil_div(512, outs), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t row = (first_mask + k % masks) * layer.out_features;
      const int64_t first = row * groups + k / masks;
      table.draw_groups(rule, static_cast<uint64_t>(first), static_cast<uint64_t>(groups), outs,
                        out + k * outs * kGroupWords);
    }
  });
  return bits;
}

// Splits 0..total into `parts` ranges on multiples of kOutsStep.
Range part_of(int64_t total, int64_t part, int64_t parts) {
  const int64_t step = ceil_div(ceil_div(total, parts), kOutsStep) * kOutsStep;
  return {std::min(total, part * step), std::min(total, (part + 1) * step)};
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const Tensor& rng_state, const std::optional<Tensor>& mask_bits, double p,
               int64_t rows_per_mask, double scale) {
  const Layer layer = layer_of_forward(input, weight, bias, rows_per_mask, p, scale);
  const int type = kernel_index(input);
  Tensor output = on_huge_pages(empty({layer.rows, layer.out_features}, dtype_of(input), input));
  ForwardArgs args{
      make_problem(layer, weight_rule(layer, rng_state), mask_bits, device_of(rng_state)),
      view_of(input),
      view_of(weight),
      nullptr,
      0,
      nullptr,
      output.mutable_data_ptr()};
  std::optional<Scratch<uint32_t>> bias_bits;
  if (bias.has_value()) {
    bias_bits = draw_bias_bits(layer, rng_state);
    args.bias = bias->const_data_ptr();
    args.bias_stride = bias->stride(0);
    args.bias_bits = bias_bits->get();
  }
  if (output.numel() == 0) return output;
  if (forward_by_products(args, kernel_type(input))) return output;

  // Even blocks of rows in multiples of every tile height; smaller blocks of outputs for many
  // threads.
  const int64_t row_blocks = ceil_div(layer.rows, kForwardBlockRows);
  const int64_t block_rows =
      std::min(kForwardBlockRows, ceil_div(ceil_div(layer.rows, row_blocks), int64_t{12}) * 12);
  int64_t block_outs = kForwardBlockOuts;
  const auto tasks = [&] { return row_blocks * ceil_div(layer.out_features, block_outs); };
  const int64_t wanted_tasks = 4 * thread_count();
  while (block_outs > kOutsStep && tasks() < wanted_tasks) block_outs /= 2;
  const int64_t grain = layer.work() < kSerialWork ? tasks() : 1;

  const Kernels& table = kernels<Kernels>();
  parallel_for(0, tasks(), grain, [&](int64_t begin, int64_t end) {
    const Scratch<std::byte> scratch(table.forward_scratch(kernel_type(input)));
    for (int64_t k = begin; k < end; ++k) {
      const int64_t r = k % row_blocks * block_rows;
      const int64_t o = k / row_blocks * block_outs;
      const Range rows = {r, std::min(r + block_rows, layer.rows)};
      if (rows.size() <= 0) continue;
      table.forward[type](args, rows, {o, std::min(o + block_outs, layer.out_features)},
                          scratch.get());
    }
  });
  return output;
}

std::tuple<Tensor, Tensor> forward_with_bits(const Tensor& input, const Tensor& weight,
                                             const std::optional<Tensor>& bias,
                                             const Tensor& rng_state, double p,
                                             int64_t rows_per_mask, double scale) {
  const Layer layer = layer_of_forward(input, weight, bias, rows_per_mask, p, scale);
  const Tensor bits = draw_mask_bits(weight, rng_state, layer.masks, p, 0);
  return {forward(input, weight, bias, rng_state, bits, p, rows_per_mask, scale), bits};
}

// Whole groups of columns are cut evenly over the threads, each drawing its masks once for both
// gradients. The groups left over are cut by rows for d_input and by output features for d_weight.
void run_backward(const BackwardArgs& args, ScalarType type) {
  if (args.d_input == nullptr && args.d_weight == nullptr) return;
  const DropConnectProblem& problem = args.problem;
  const int64_t groups = group_count(problem.in_features);
  const bool serial = problem.rows * problem.in_features * problem.out_features < kSerialWork;
  const int64_t threads = serial ? 1 : thread_count();
  const int64_t whole = groups - groups % threads;
  const Range all_rows = {0, problem.rows};
  const Range all_outs = {0, problem.out_features};
  const Kernels& table = kernels<Kernels>();
  const auto run = table.backward[static_cast<int>(type)];

  parallel_for(0, whole, serial ? whole : 1, [&](int64_t begin, int64_t end) {
    const Scratch<std::byte> scratch(table.backward_scratch(type, all_outs));
    for (int64_t g = begin; g < end; ++g) {
      run(args, g, all_rows, all_outs, scratch.get());
    }
  });

  const int64_t parts = threads;
  parallel_for(0, (groups - whole) * parts * 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const bool for_weight = k % 2;
      const int64_t part = k / 2 % parts;
      BackwardArgs half = args;
      (for_weight ? half.d_input : half.d_weight) = nullptr;
      if (half.d_input == nullptr && half.d_weight == nullptr) continue;
      const Range rows = for_weight ? all_rows : part_of(problem.rows, part, parts);
      const Range outs = for_weight ? part_of(problem.out_features, part, parts) : all_outs;
      if (rows.size() <= 0 || outs.size() <= 0) continue;
      const Scratch<std::byte> scratch(table.backward_scratch(type, outs));
      run(half, whole + k / 2 / parts, rows, outs, scratch.get());
    }
  });
}

struct Gradients {
  std::optional<Tensor> d_input;
  std::optional<Tensor> d_weight;
};

// A missing `input` or `weight` leaves the other's gradient out.
Gradients backward(const Tensor& grad_output, const Tensor* input, const Tensor* weight,
                   const Tensor& rng_state, const std::optional<Tensor>& mask_bits, double p,
                   int64_t rows_per_mask, double scale) {
  const Layer layer = layer_of_backward(grad_output, input, weight, rows_per_mask, p, scale);
  BackwardArgs args{
      make_problem(layer, weight_rule(layer, rng_state), mask_bits, device_of(rng_state)),
      view_of(grad_output),
      {},
      {},
      nullptr,
      nullptr};
  Gradients gradients;
  if (weight != nullptr) {
    args.weight = view_of(*weight);
    gradients.d_input =
        on_huge_pages(empty({layer.rows, layer.in_features}, dtype_of(grad_output), grad_output));
    args.d_input = gradients.d_input->mutable_data_ptr();
  }
  if (input != nullptr) {
    args.input = view_of(*input);
    gradients.d_weight = on_huge_pages(
        empty({layer.out_features, layer.in_features}, dtype_of(grad_output), grad_output));
    args.d_weight = gradients.d_weight->mutable_data_ptr();
  }
  run_backward(backward_by_products(args, kernel_type(grad_output)), kernel_type(grad_output));
  return gradients;
}

Tensor d_input(const Tensor& grad_output, const Tensor& weight, const Tensor& rng_state,
               const std::optional<Tensor>& mask_bits, double p, int64_t rows_per_mask,
               double scale) {
  return *backward(grad_output, nullptr, &weight, rng_state, mask_bits, p, rows_per_mask, scale)
              .d_input;
}

Tensor d_weight(const Tensor& grad_output, const Tensor& input, const Tensor& rng_state,
                const std::optional<Tensor>& mask_bits, double p, int64_t rows_per_mask,
                double scale) {
  return *backward(grad_output, &input, nullptr, rng_state, mask_bits, p, rows_per_mask, scale)
              .d_weight;
}

std::tuple<Tensor, Tensor> d_both(const Tensor& grad_output, const Tensor& input,
                                  const Tensor& weight, const Tensor& rng_state,
                                  const std::optional<Tensor>& mask_bits, double p,
                                  int64_t rows_per_mask, double scale) {
  const Gradients both =
      backward(grad_output, &input, &weight, rng_state, mask_bits, p, rows_per_mask, scale);
  return {*both.d_input, *both.d_weight};
}

Tensor d_bias(const Tensor& grad_output, const Tensor& rng_state, double p, int64_t rows_per_mask,
              double scale) {
  check_matrix(grad_output, "grad_output");
  const Layer layer =
      make_layer(grad_output.size(0), 1, grad_output.size(1), rows_per_mask, p, scale);
  const Scratch<uint32_t> bits = draw_bias_bits(layer, rng_state);
  Tensor result = empty({layer.out_features}, dtype_of(grad_output), grad_output);
  const BiasGradArgs args{
      view_of(grad_output),     layer.rows, layer.out_features, rows_per_mask, scale, bits.get(),
      result.mutable_data_ptr()};
  const auto run = kernels<Kernels>().bias_grad[kernel_index(grad_output)];
  const int64_t grain = std::max<int64_t>(1, kSerialWork / (layer.rows * kGroupColumns + 1));
  parallel_for(0, group_count(layer.out_features), grain, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) run(args, g);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("dropconnect_mask_bits", TORCH_BOX(&draw_mask_bits));
  m.impl("dropconnect_linear", TORCH_BOX(&forward));
  m.impl("dropconnect_linear_with_bits", TORCH_BOX(&forward_with_bits));
  m.impl("dropconnect_linear_d_input", TORCH_BOX(&d_input));
  m.impl("dropconnect_linear_d_weight", TORCH_BOX(&d_weight));
  m.impl("dropconnect_linear_d_both", TORCH_BOX(&d_both));
  m.impl("dropconnect_linear_d_bias", TORCH_BOX(&d_bias));
}

}  // namespace fused_dropout::dropconnect
