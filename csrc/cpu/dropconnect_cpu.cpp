// IMPL(CPU) of the DropConnect operators: checks, cutting the work, at::parallel_for.
//
// Every element of a result is summed in an order that depends on the shapes alone, so results do
// not change with the number of threads; the cuts below are free to.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../dropconnect_layer.h"
#include "dispatch.h"

namespace fused_dropout {
namespace {

using at::Tensor;

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kSerialWork = 1 << 15;
constexpr int64_t kOutsStep = 32;  // cuts of output features and rows fall on multiples of this

MaskRule weight_rule(const Layer& layer, const Tensor& rng_state) {
  return rule_from_cpu_state(rng_state, layer.p, kStreamMask, kDefaultDigits);
}

// The packed bias masks [masks, groups of output features], drawn in one go: they are tiny.
Tensor draw_bias_bits(const Layer& layer, const Tensor& rng_state) {
  const MaskRule rule = rule_from_cpu_state(rng_state, layer.p, kStreamBias, kDefaultDigits);
  const int64_t groups = layer.masks * group_count(layer.out_features);
  Tensor bits = at::empty({groups * kGroupWords}, at::kInt);
  kernels().mask.draw_groups(rule, 0, 1, groups, static_cast<uint32_t*>(bits.mutable_data_ptr()));
  return bits;
}

Tensor mask_bits_cpu(const Tensor& weight, const Tensor& rng_state, int64_t masks, double p) {
  check_matrix(weight, "weight");
  const int64_t out_features = weight.size(0);
  const Layer layer = make_layer(masks, weight.size(1), out_features, 1, p, true);
  const MaskRule rule = weight_rule(layer, rng_state);
  Tensor bits = at::empty(stored_shape(layer), at::kInt);
  if (bits.numel() == 0) return bits;
  const MaskKernels& table = kernels().mask;
  const int64_t groups = bits.size(0);
  const int64_t outs = bits.size(2);
  uint32_t* out = static_cast<uint32_t*>(bits.mutable_data_ptr());
  at::parallel_for(0, groups * masks, ceil_div(512, outs), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k % masks * out_features * groups + k / masks;
      table.draw_groups(rule, static_cast<uint64_t>(first), static_cast<uint64_t>(groups), outs,
                        out + k * outs * kGroupWords);
    }
  });
  return bits;
}

Tensor allocate_scratch(size_t bytes) {
  return at::empty({static_cast<int64_t>(bytes)}, at::kByte);
}

// Splits 0..total into `parts` ranges on multiples of kOutsStep.
Range part_of(int64_t total, int64_t part, int64_t parts) {
  const int64_t step = ceil_div(ceil_div(total, parts), kOutsStep) * kOutsStep;
  return {std::min(total, part * step), std::min(total, (part + 1) * step)};
}

Tensor forward_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   const Tensor& rng_state, const std::optional<Tensor>& mask_bits, double p,
                   int64_t rows_per_mask, bool rescale) {
  const Layer layer = layer_of_forward(input, weight, bias, rows_per_mask, p, rescale);
  const int type = static_cast<int>(kernel_type(input));
  Tensor output = at::empty({layer.rows, layer.out_features}, input.options());
  ForwardArgs args{
      make_problem(layer, weight_rule(layer, rng_state), mask_bits, rng_state.device()),
      view_of(input),
      view_of(weight),
      nullptr,
      0,
      nullptr,
      output.mutable_data_ptr()};
  Tensor bias_bits;
  if (bias.has_value()) {
    bias_bits = draw_bias_bits(layer, rng_state);
    args.bias = bias->const_data_ptr();
    args.bias_stride = bias->stride(0);
    args.bias_bits = static_cast<const uint32_t*>(bias_bits.const_data_ptr());
  }
  if (output.numel() == 0) return output;

  // Even blocks of rows in multiples of every tile height; smaller blocks of outputs for many
  // threads.
  const int64_t row_blocks = ceil_div(layer.rows, kForwardBlockRows);
  const int64_t block_rows =
      std::min(kForwardBlockRows, ceil_div(ceil_div(layer.rows, row_blocks), int64_t{12}) * 12);
  int64_t block_outs = kForwardBlockOuts;
  const auto tasks = [&] { return row_blocks * ceil_div(layer.out_features, block_outs); };
  while (block_outs > kOutsStep && tasks() < 4 * at::get_num_threads()) block_outs /= 2;
  const int64_t grain = layer.work() < kSerialWork ? tasks() : 1;

  const DropConnectKernels& table = kernels().dropconnect;
  at::parallel_for(0, tasks(), grain, [&](int64_t begin, int64_t end) {
    Tensor scratch = allocate_scratch(table.forward_scratch(kernel_type(input)));
    for (int64_t k = begin; k < end; ++k) {
      const int64_t r = k % row_blocks * block_rows;
      const int64_t o = k / row_blocks * block_outs;
      const Range rows = {r, std::min(r + block_rows, layer.rows)};
      if (rows.size() <= 0) continue;
      table.forward[type](args, rows, {o, std::min(o + block_outs, layer.out_features)},
                          scratch.mutable_data_ptr());
    }
  });
  return output;
}

// Whole groups of columns are cut evenly over the threads, each drawing its masks once for both
// gradients. The groups left over are cut by rows for d_input and by output features for d_weight.
void run_backward(const BackwardArgs& args, ScalarType type) {
  const DropConnectProblem& problem = args.problem;
  const int64_t groups = group_count(problem.in_features);
  const bool serial = problem.rows * problem.in_features * problem.out_features < kSerialWork;
  const int64_t threads = serial ? 1 : at::get_num_threads();
  const int64_t whole = groups - groups % threads;
  const Range all_rows = {0, problem.rows};
  const Range all_outs = {0, problem.out_features};
  const DropConnectKernels& table = kernels().dropconnect;
  const auto run = table.backward[static_cast<int>(type)];

  at::parallel_for(0, whole, serial ? whole : 1, [&](int64_t begin, int64_t end) {
    Tensor scratch = allocate_scratch(table.backward_scratch(type, all_outs));
    for (int64_t g = begin; g < end; ++g) {
      run(args, g, all_rows, all_outs, scratch.mutable_data_ptr());
    }
  });

  const int64_t parts = threads;
  at::parallel_for(0, (groups - whole) * parts * 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const bool for_weight = k % 2;
      const int64_t part = k / 2 % parts;
      BackwardArgs half = args;
      (for_weight ? half.d_input : half.d_weight) = nullptr;
      if (half.d_input == nullptr && half.d_weight == nullptr) continue;
      const Range rows = for_weight ? all_rows : part_of(problem.rows, part, parts);
      const Range outs = for_weight ? part_of(problem.out_features, part, parts) : all_outs;
      if (rows.size() <= 0 || outs.size() <= 0) continue;
      Tensor scratch = allocate_scratch(table.backward_scratch(type, outs));
      run(half, whole + k / 2 / parts, rows, outs, scratch.mutable_data_ptr());
    }
  });
}

// d_input, d_weight or both; a missing `input` or `weight` leaves the other's gradient out.
std::tuple<Tensor, Tensor> backward_cpu(const Tensor& grad_output, const Tensor* input,
                                        const Tensor* weight, const Tensor& rng_state,
                                        const std::optional<Tensor>& mask_bits, double p,
                                        int64_t rows_per_mask, bool rescale) {
  const Layer layer = layer_of_backward(grad_output, input, weight, rows_per_mask, p, rescale);
  BackwardArgs args{
      make_problem(layer, weight_rule(layer, rng_state), mask_bits, rng_state.device()),
      view_of(grad_output),
      {},
      {},
      nullptr,
      nullptr};
  Tensor d_input, d_weight;
  if (weight != nullptr) {
    args.weight = view_of(*weight);
    d_input = at::empty({layer.rows, layer.in_features}, grad_output.options());
    args.d_input = d_input.mutable_data_ptr();
  }
  if (input != nullptr) {
    args.input = view_of(*input);
    d_weight = at::empty({layer.out_features, layer.in_features}, grad_output.options());
    args.d_weight = d_weight.mutable_data_ptr();
  }
  run_backward(args, kernel_type(grad_output));
  return {d_input, d_weight};
}

Tensor d_input_cpu(const Tensor& grad_output, const Tensor& weight, const Tensor& rng_state,
                   const std::optional<Tensor>& mask_bits, double p, int64_t rows_per_mask,
                   bool rescale) {
  return std::get<0>(
      backward_cpu(grad_output, nullptr, &weight, rng_state, mask_bits, p, rows_per_mask, rescale));
}

Tensor d_weight_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& rng_state,
                    const std::optional<Tensor>& mask_bits, double p, int64_t rows_per_mask,
                    bool rescale) {
  return std::get<1>(
      backward_cpu(grad_output, &input, nullptr, rng_state, mask_bits, p, rows_per_mask, rescale));
}

std::tuple<Tensor, Tensor> d_both_cpu(const Tensor& grad_output, const Tensor& input,
                                      const Tensor& weight, const Tensor& rng_state,
                                      const std::optional<Tensor>& mask_bits, double p,
                                      int64_t rows_per_mask, bool rescale) {
  return backward_cpu(grad_output, &input, &weight, rng_state, mask_bits, p, rows_per_mask,
                      rescale);
}

Tensor d_bias_cpu(const Tensor& grad_output, const Tensor& rng_state, double p,
                  int64_t rows_per_mask, bool rescale) {
  check_matrix(grad_output, "grad_output");
  const Layer layer =
      make_layer(grad_output.size(0), 1, grad_output.size(1), rows_per_mask, p, rescale);
  const Tensor bits = draw_bias_bits(layer, rng_state);
  const MaskRule rule = weight_rule(layer, rng_state);  // the keep rate is the bias's too
  Tensor d_bias = at::empty({layer.out_features}, grad_output.options());
  const BiasGradArgs args{
      view_of(grad_output),     layer.rows,
      layer.out_features,       rows_per_mask,
      scale_of(rule, rescale),  static_cast<const uint32_t*>(bits.const_data_ptr()),
      d_bias.mutable_data_ptr()};
  const auto run = kernels().dropconnect.bias_grad[static_cast<int>(kernel_type(grad_output))];
  const int64_t grain = std::max<int64_t>(1, kSerialWork / (layer.rows * kGroupColumns + 1));
  at::parallel_for(0, group_count(layer.out_features), grain, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) run(args, g);
  });
  return d_bias;
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("dropconnect_mask_bits", mask_bits_cpu);
  m.impl("dropconnect_linear", forward_cpu);
  m.impl("dropconnect_linear_d_input", d_input_cpu);
  m.impl("dropconnect_linear_d_weight", d_weight_cpu);
  m.impl("dropconnect_linear_d_both", d_both_cpu);
  m.impl("dropconnect_linear_d_bias", d_bias_cpu);
}

}  // namespace fused_dropout
