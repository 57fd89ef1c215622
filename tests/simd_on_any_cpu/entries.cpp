// Calls the tables of kernels (csrc/cpu/<op>.h) of the instruction set ENTRIES_ISA, which another
// object file holds.
#include "entries.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "common/drop_block.h"
#include "common/mask.h"
#include "common/noise.h"
#include "cpu/bias_act_dropout_add.h"
#include "cpu/concrete_dropout.h"
#include "cpu/dispatch.h"
#include "cpu/drop_block.h"
#include "cpu/dropconnect.h"
#include "cpu/dropconnect_moments.h"
#include "cpu/dropout.h"
#include "cpu/gaussian_dropout.h"
#include "cpu/gaussian_noise.h"
#include "cpu/mask.h"
#include "cpu/mask_weight.h"
#include "cpu/noise.h"
#include "cpu/scratch.h"
#include "cpu/zoneout.h"

using namespace fused_dropout;

namespace {

template <class Kernels>
const Kernels& table() {
  return kernels_for<Isa::ENTRIES_ISA, Kernels>();
}

MaskRule rule_of(const Random& random, int64_t stream, int64_t digits) {
  return make_mask_rule(static_cast<uint64_t>(random.seed), static_cast<uint64_t>(random.offset),
                        static_cast<uint32_t>(stream), random.p, static_cast<int>(digits));
}

NoiseRun noise_run(const Random& random, int64_t first_block, int64_t count) {
  const MaskRule rule =
      make_noise_rule(static_cast<uint64_t>(random.seed), static_cast<uint64_t>(random.offset));
  return {rule, static_cast<uint64_t>(first_block), count};
}

AffineMap map_of(const Affine& map) { return {map.scale, map.shift, map.fill}; }

MatrixView view_of(const Matrix* matrix) {
  if (matrix == nullptr) return {};
  return {matrix->data, matrix->row_stride, matrix->col_stride};
}

DropConnectProblem problem_of(const Random& random, const Layer& layer, const uint32_t* mask_bits) {
  DropConnectProblem problem = {};
  problem.rule = rule_of(random, kStreamMask, kDefaultDigits);
  problem.rows = layer.rows;
  problem.in_features = layer.in_features;
  problem.out_features = layer.out_features;
  problem.rows_per_mask = layer.rows_per_mask;
  problem.scale = layer.scale;
  problem.mask_bits = mask_bits;
  return problem;
}

std::vector<uint32_t> bias_bits(const Random& random, const Layer& layer) {
  const int64_t masks = ceil_div(layer.rows, layer.rows_per_mask);
  const int64_t groups = masks * group_count(layer.out_features);
  std::vector<uint32_t> bits(static_cast<size_t>(groups * kGroupWords));
  table<mask::Kernels>().draw_groups(rule_of(random, kStreamBias, kDefaultDigits), 0, 1, groups,
                                     bits.data());
  return bits;
}

}  // namespace

void mask_draw_groups(const Random* random, int64_t stream, int64_t digits, int64_t first,
                      int64_t stride, int64_t count, uint32_t* out) {
  table<mask::Kernels>().draw_groups(rule_of(*random, stream, digits), static_cast<uint64_t>(first),
                                     static_cast<uint64_t>(stride), count, out);
}

void mask_draw_bytes(const Random* random, int64_t stream, int64_t digits, int64_t first,
                     int64_t rows, int64_t cols, uint8_t* out) {
  table<mask::Kernels>().draw_bytes(rule_of(*random, stream, digits), static_cast<uint64_t>(first),
                                    rows, cols, out);
}

void dropout_draw_and_apply(int64_t type, const Random* random, const Affine* map, const void* in,
                            const void* residual, void* out, int64_t count, int64_t first_group) {
  table<dropout::Kernels>().draw_and_apply[type](rule_of(*random, kStreamMask, kDefaultDigits),
                                                 map_of(*map), {in, residual, out, count},
                                                 static_cast<uint64_t>(first_group));
}

void dropout_apply(int64_t type, const Affine* map, const void* in, const void* residual, void* out,
                   int64_t count, const uint32_t* bits) {
  table<dropout::Kernels>().apply[type](map_of(*map), {in, residual, out, count}, bits);
}

void dropout_apply_alike(int64_t type, const Affine* map, const void* in, const void* residual,
                         void* out, int64_t count, int64_t kept) {
  table<dropout::Kernels>().apply_alike[type](map_of(*map), {in, residual, out, count}, kept != 0);
}

void dropout_apply_columns(int64_t type, const Affine* map, const void* in, const void* residual,
                           void* out, int64_t rows, int64_t cols, int64_t row_stride,
                           const int64_t* first_bits, const uint32_t* bits) {
  table<dropout::Kernels>().apply_columns[type](map_of(*map), {in, residual, out, 0},
                                                {rows, cols, row_stride, first_bits}, bits);
}

void zoneout_draw_and_select(int64_t type, const Random* random, const void* input,
                             const void* previous, void* out, int64_t count, int64_t first_group) {
  table<zoneout::Kernels>().forward.draw_and_apply[type](
      rule_of(*random, kStreamMask, kDefaultDigits), {input, previous, out, count},
      static_cast<uint64_t>(first_group));
}

void zoneout_select(int64_t type, const void* input, const void* previous, void* out, int64_t count,
                    const uint32_t* bits) {
  table<zoneout::Kernels>().forward.apply[type]({input, previous, out, count}, bits);
}

void zoneout_select_columns(int64_t type, const void* input, const void* previous, void* out,
                            int64_t rows, int64_t cols, int64_t row_stride,
                            const int64_t* first_bits, const uint32_t* bits) {
  table<zoneout::Kernels>().forward.apply_columns[type]({input, previous, out, 0},
                                                        {rows, cols, row_stride, first_bits}, bits);
}

void zoneout_draw_and_split(int64_t type, const Random* random, const void* grad, void* d_input,
                            void* d_previous, int64_t count, int64_t first_group) {
  table<zoneout::Kernels>().backward.draw_and_apply[type](
      rule_of(*random, kStreamMask, kDefaultDigits), {grad, d_input, d_previous, count},
      static_cast<uint64_t>(first_group));
}

void zoneout_split(int64_t type, const void* grad, void* d_input, void* d_previous, int64_t count,
                   const uint32_t* bits) {
  table<zoneout::Kernels>().backward.apply[type]({grad, d_input, d_previous, count}, bits);
}

void zoneout_split_columns(int64_t type, const void* grad, void* d_input, void* d_previous,
                           int64_t rows, int64_t cols, int64_t row_stride,
                           const int64_t* first_bits, const uint32_t* bits) {
  table<zoneout::Kernels>().backward.apply_columns[type](
      {grad, d_input, d_previous, 0}, {rows, cols, row_stride, first_bits}, bits);
}

int64_t dropconnect_mask_words(const Layer* layer) {
  const int64_t masks = ceil_div(layer->rows, layer->rows_per_mask);
  return group_count(layer->in_features) * masks * stored_outs(layer->out_features) * kGroupWords;
}

void dropconnect_mask_bits(const Random* random, const Layer* layer, uint32_t* out) {
  const MaskRule rule = rule_of(*random, kStreamMask, kDefaultDigits);
  const int64_t masks = ceil_div(layer->rows, layer->rows_per_mask);
  const int64_t groups = group_count(layer->in_features);
  const int64_t outs = stored_outs(layer->out_features);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t m = 0; m < masks; ++m, out += outs * kGroupWords) {
      const int64_t first = m * layer->out_features * groups + g;
      table<mask::Kernels>().draw_groups(rule, static_cast<uint64_t>(first),
                                         static_cast<uint64_t>(groups), outs, out);
    }
  }
}

void dropconnect_forward(int64_t type, const Random* random, const Layer* layer,
                         const uint32_t* mask_bits, const Matrix* input, const Matrix* weight,
                         const void* bias, int64_t bias_stride, void* output) {
  using namespace fused_dropout::dropconnect;
  const std::vector<uint32_t> kept_bias = bias_bits(*random, *layer);
  ForwardArgs args = {};
  args.problem = problem_of(*random, *layer, mask_bits);
  args.input = view_of(input);
  args.weight = view_of(weight);
  args.bias = bias;
  args.bias_stride = bias_stride;
  args.bias_bits = bias == nullptr ? nullptr : kept_bias.data();
  args.output = output;
  const Kernels& kernels = table<Kernels>();
  const Scratch<std::byte> scratch(kernels.forward_scratch(static_cast<ScalarType>(type)));
  for (int64_t r = 0; r < layer->rows; r += kForwardBlockRows) {
    const Range rows = {r, std::min(r + kForwardBlockRows, layer->rows)};
    for (int64_t o = 0; o < layer->out_features; o += kForwardBlockOuts) {
      const Range outs = {o, std::min(o + kForwardBlockOuts, layer->out_features)};
      kernels.forward[type](args, rows, outs, scratch.get());
    }
  }
}

void dropconnect_backward(int64_t type, const Random* random, const Layer* layer,
                          const uint32_t* mask_bits, const Matrix* grad_output, const Matrix* input,
                          const Matrix* weight, void* d_input, void* d_weight) {
  using namespace fused_dropout::dropconnect;
  BackwardArgs args = {};
  args.problem = problem_of(*random, *layer, mask_bits);
  args.grad_output = view_of(grad_output);
  args.input = view_of(input);
  args.weight = view_of(weight);
  args.d_input = d_input;
  args.d_weight = d_weight;
  const Kernels& kernels = table<Kernels>();
  const Range rows = {0, layer->rows};
  const Range outs = {0, layer->out_features};
  const Scratch<std::byte> scratch(kernels.backward_scratch(static_cast<ScalarType>(type), outs));
  for (int64_t g = 0; g < group_count(layer->in_features); ++g) {
    kernels.backward[type](args, g, rows, outs, scratch.get());
  }
}

void dropconnect_bias_grad(int64_t type, const Random* random, const Layer* layer,
                           const Matrix* grad_output, void* d_bias) {
  using namespace fused_dropout::dropconnect;
  const std::vector<uint32_t> kept = bias_bits(*random, *layer);
  BiasGradArgs args = {};
  args.grad_output = view_of(grad_output);
  args.rows = layer->rows;
  args.out_features = layer->out_features;
  args.rows_per_mask = layer->rows_per_mask;
  args.scale = layer->scale;
  args.bias_bits = kept.data();
  args.d_bias = d_bias;
  for (int64_t g = 0; g < group_count(layer->out_features); ++g) {
    table<Kernels>().bias_grad[type](args, g);
  }
}

namespace {
// All of one mask.
mask_weight::Tile whole_mask(const Layer& layer, int64_t mask) {
  return {mask, {0, layer.out_features}, {0, group_count(layer.in_features)}};
}
}  // namespace

void mask_weight_apply(int64_t type, const Random* random, const Layer* layer,
                       const uint32_t* mask_bits, const Matrix* weight, int64_t mask, void* out) {
  table<mask_weight::Kernels>().apply[type](problem_of(*random, *layer, mask_bits), view_of(weight),
                                            whole_mask(*layer, mask), out, layer->in_features);
}

void mask_weight_apply_wide(int64_t type, const Random* random, const Layer* layer,
                            const uint32_t* mask_bits, const Matrix* weight, int64_t mask,
                            void* out) {
  table<mask_weight::Kernels>().apply_wide[type](problem_of(*random, *layer, mask_bits),
                                                 view_of(weight), whole_mask(*layer, mask), out,
                                                 layer->in_features);
}

void mask_weight_apply_transposed(int64_t type, const Random* random, const Layer* layer,
                                  const uint32_t* mask_bits, const void* weight, int64_t mask,
                                  void* out) {
  const DropConnectProblem problem = problem_of(*random, *layer, mask_bits);
  const int64_t stride =
      ceil_div(layer->out_features, mask_weight::kMostLanes) * mask_weight::kMostLanes;
  constexpr int64_t kBytes[] = {4, 2, 2, 8};
  for (int64_t o = 0; o < layer->out_features; o += kGroupColumns) {
    const Range outs = {o, std::min(o + kGroupColumns, layer->out_features)};
    table<mask_weight::Kernels>().apply_transposed[type](
        problem, static_cast<const char*>(weight) + o * kBytes[type], stride,
        {mask, outs, {0, group_count(layer->in_features)}},
        static_cast<char*>(out) + o * kBytes[type], stride);
  }
}

void mask_weight_add(int64_t type, const Random* random, const Layer* layer,
                     const uint32_t* mask_bits, const Matrix* weight, int64_t mask, void* sum) {
  table<mask_weight::Kernels>().add[type](problem_of(*random, *layer, mask_bits), view_of(weight),
                                          whole_mask(*layer, mask), sum, layer->in_features);
}

void mask_weight_sum(int64_t type, const Random* random, const Layer* layer,
                     const uint32_t* mask_bits, const void* stack, void* out) {
  const DropConnectProblem problem = problem_of(*random, *layer, mask_bits);
  const mask_weight::StackView view = {stack, layer->out_features * layer->in_features,
                                       layer->in_features, 1};
  for (int64_t o = 0; o < layer->out_features; o += mask_weight::kTileOuts) {
    const Range outs = {o, std::min(o + mask_weight::kTileOuts, layer->out_features)};
    for (int64_t g = 0; g < group_count(layer->in_features); ++g) {
      table<mask_weight::Kernels>().sum[type](problem, view, outs, g, out);
    }
  }
}

void mask_weight_add_row(int64_t type, const void* row, int64_t count, void* out) {
  table<mask_weight::Kernels>().add_row[type](row, count, out);
}

int64_t mask_weight_all_finite(int64_t type, const void* data, int64_t stride, int64_t count) {
  return table<mask_weight::Kernels>().all_finite[type](data, stride, count);
}

namespace {
MomentsProblem moments_of(const Layer& layer, const Matrix* weight, const void* bias,
                          bool mask_bias) {
  return {{},
          view_of(weight),
          bias,
          1,
          layer.rows,
          layer.in_features,
          layer.out_features,
          layer.scale,
          layer.scale * layer.scale,
          mask_bias};
}
}  // namespace

void dropconnect_moments_square(int64_t type, const Matrix* matrix, int64_t rows, int64_t cols,
                                void* wide, void* squares, int64_t stride) {
  table<dropconnect_moments::Kernels>().square[type](view_of(matrix), {0, rows}, cols, wide,
                                                     squares, stride);
}

void dropconnect_moments_apply(int64_t type, const Layer* layer, int64_t mask_bias,
                               const void* wide, const void* squares, int64_t stride,
                               const Matrix* weight, const void* bias, void* mean, void* variance) {
  const MomentsProblem problem = moments_of(*layer, weight, bias, mask_bias != 0);
  const int64_t half = layer->out_features / 2;  // the cut changes nothing
  const auto apply = table<dropconnect_moments::Kernels>().apply[type];
  apply(problem, wide, squares, stride, {0, half}, mean, variance);
  apply(problem, wide, squares, stride, {half, layer->out_features}, mean, variance);
}

void dropconnect_moments_finish(int64_t type, const Layer* layer, int64_t mask_bias,
                                const void* bias, void* mean, void* variance) {
  table<dropconnect_moments::Kernels>().finish[type](
      moments_of(*layer, nullptr, bias, mask_bias != 0), {0, layer->rows}, mean, variance);
}

void drop_block_mask(const Random* random, int64_t maps, const int64_t* size, const int64_t* block,
                     uint64_t* out) {
  using namespace fused_dropout::drop_block;
  const BlockMaps all = {maps, {size[0], size[1], size[2]}, {block[0], block[1], block[2]}};
  const int64_t groups = group_count(maps * seeds_of_map(all));
  std::vector<uint32_t> seeds(static_cast<size_t>((groups + 1) * kGroupWords));
  table<mask::Kernels>().draw_groups(rule_of(*random, kStreamMask, kSeedDigits), 0, 1, groups,
                                     seeds.data());
  const Kernels& kernels = table<Kernels>();
  std::vector<uint64_t> scratch(static_cast<size_t>(kernels.scratch_words(all)));
  kernels.dilate(all, seeds.data(), 0, scratch.data(), out);
}

int64_t drop_block_count_bits(const uint64_t* bits, int64_t first, int64_t count) {
  return table<drop_block::Kernels>().count_bits(bits, first, count);
}

void bias_act_dropout_add_forward(int64_t type, const Random* random, double scale,
                                  int64_t activation, int64_t features, const void* in,
                                  const void* bias, const void* residual, void* out, int64_t count,
                                  int64_t first_group) {
  const MaskRule rule = rule_of(*random, kStreamMask, kDefaultDigits);
  table<bias_act_dropout_add::Kernels>().forward[type](
      {rule, scale, static_cast<Activation>(activation), features},
      {in, bias, residual, out, count}, first_group);
}

void bias_act_dropout_add_backward(int64_t type, const Random* random, double scale,
                                   int64_t activation, int64_t features, const void* grad,
                                   const void* in, const void* bias, void* d_input, void* sums,
                                   int64_t count, int64_t first_group) {
  const MaskRule rule = rule_of(*random, kStreamMask, kDefaultDigits);
  table<bias_act_dropout_add::Kernels>().backward[type](
      {rule, scale, static_cast<Activation>(activation), features},
      {grad, in, bias, d_input, sums, count}, first_group);
}

void noise_uniforms(int64_t type, const Random* random, int64_t first_block, int64_t count,
                    void* out) {
  const NoiseRun run = noise_run(*random, first_block, count);
  if (static_cast<ScalarType>(type) == ScalarType::kFloat64) {
    table<noise::Kernels>().uniforms_double(run, static_cast<double*>(out));
  } else {
    table<noise::Kernels>().uniforms_float(run, static_cast<float*>(out));
  }
}

void noise_normals(int64_t type, const Random* random, int64_t first_block, int64_t count,
                   void* out) {
  const NoiseRun run = noise_run(*random, first_block, count);
  if (static_cast<ScalarType>(type) == ScalarType::kFloat64) {
    table<noise::Kernels>().normals_double(run, static_cast<double*>(out));
  } else {
    table<noise::Kernels>().normals_float(run, static_cast<float*>(out));
  }
}

void gaussian_dropout_apply(int64_t type, const Random* random, double sigma, const void* in,
                            void* out, int64_t first_block, int64_t count) {
  const NoiseRun run = noise_run(*random, first_block, count);
  table<gaussian_dropout::Kernels>().apply[type](run, sigma, in, out);
}

void gaussian_noise_add(int64_t type, const Random* random, double eps, const void* mean,
                        const void* variance, void* out, int64_t first_block, int64_t count) {
  const NoiseRun run = noise_run(*random, first_block, count);
  table<gaussian_noise::Kernels>().add[type](run, eps, mean, variance, out);
}

void gaussian_noise_d_variance(int64_t type, const Random* random, double eps, const void* grad,
                               const void* variance, void* out, int64_t first_block,
                               int64_t count) {
  const NoiseRun run = noise_run(*random, first_block, count);
  table<gaussian_noise::Kernels>().d_variance[type](run, eps, grad, variance, out);
}

namespace {
concrete_dropout::Rate rate_of(double logit, double temperature) {
  return {logit, 1.0 / (1.0 + std::exp(-logit)), 1.0 / temperature};
}
}  // namespace

void concrete_dropout_apply(int64_t type, const Random* random, double logit, double temperature,
                            const void* in, void* out, int64_t first_block, int64_t count) {
  const NoiseRun run = noise_run(*random, first_block, count);
  table<concrete_dropout::Kernels>().apply[type](run, rate_of(logit, temperature), in, out);
}

double concrete_dropout_backward(int64_t type, const Random* random, double logit,
                                 double temperature, const void* grad, const void* in, void* d_in,
                                 int64_t first_block, int64_t count) {
  const NoiseRun run = noise_run(*random, first_block, count);
  return table<concrete_dropout::Kernels>().backward[type](run, rate_of(logit, temperature), grad,
                                                           in, d_in);
}

void concrete_dropout_factors(int64_t type, const Random* random, double logit, double temperature,
                              int64_t first_block, int64_t count, void* factors, void* slopes) {
  const NoiseRun run = noise_run(*random, first_block, count);
  table<concrete_dropout::Kernels>().factors[type](run, rate_of(logit, temperature), factors,
                                                   slopes);
}

void concrete_dropout_multiply(int64_t type, const void* in, const void* factors, int64_t count,
                               void* out) {
  table<concrete_dropout::Kernels>().multiply[type](in, factors, count, out);
}

double concrete_dropout_multiply_and_sum(int64_t type, const void* grad, const void* in,
                                         const void* factors, const void* slopes, int64_t count,
                                         void* d_in) {
  return table<concrete_dropout::Kernels>().multiply_and_sum[type](grad, in, factors, slopes, count,
                                                                   d_in);
}
