// IMPL(CPU) of masked weights: checks, cutting the work, parallel_for.
//
// Every sum over masks runs in their order, so results do not change with the number of threads.
#include "mask_weight.h"

#include <algorithm>

#include "../ops/mask_weight.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "parallel.h"

namespace fused_dropout::mask_weight {
namespace {

constexpr int64_t kGrainElements = 1 << 15;  // a task's take about 10 us

DropConnectProblem problem_of(const Layer& layer, const Tensor& rng_state,
                              const std::optional<Tensor>& mask_bits) {
  const MaskRule rule = rule_from_cpu_state(rng_state, layer.p, kStreamMask, kDefaultDigits);
  return make_problem(layer, rule, mask_bits, device_of(rng_state));
}

Range tile_outs(const Layer& layer, int64_t tile) {
  return {tile * kTileOuts, std::min((tile + 1) * kTileOuts, layer.out_features)};
}

// All masks of an output feature's weights one after another, while these are in cache.
void apply_into(const Tensor& out, const MatrixView& weight, const Layer& layer,
                const DropConnectProblem& problem) {
  const auto apply = kernels<Kernels>().apply[kernel_index(out)];
  const Range groups = {0, group_count(layer.in_features)};
  const int64_t matrix = layer.out_features * layer.in_features;
  const char* const in = static_cast<const char*>(weight.data);
  char* const data = static_cast<char*>(out.mutable_data_ptr());
  const int64_t bytes = static_cast<int64_t>(out.element_size());
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (kTileOuts * layer.in_features));
  const int64_t tasks = ceil_div(layer.out_features, kTileOuts) * layer.masks;
  parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Tile tile = {k % layer.masks, tile_outs(layer, k / layer.masks), groups};
      const int64_t first = tile.mask * matrix + tile.outs.begin * layer.in_features;
      const MatrixView rows = {in + tile.outs.begin * weight.row_stride * bytes, weight.row_stride,
                               weight.col_stride};
      apply(problem, rows, tile, data + first * bytes, layer.in_features);
    }
  });
}

Tensor forward(const Tensor& weight, const Tensor& rng_state,
               const std::optional<Tensor>& mask_bits, double p, int64_t masks, double scale) {
  const Layer layer = layer_of_weight(weight, p, masks, scale);
  const DropConnectProblem problem = problem_of(layer, rng_state, mask_bits);
  const Tensor out = on_huge_pages(
      empty({masks, layer.out_features, layer.in_features}, dtype_of(weight), weight));
  if (out.numel() > 0) apply_into(out, view_of(weight), layer, problem);
  return out;
}

void sum_into(const Tensor& out, const Tensor& stack, const Layer& layer,
              const DropConnectProblem& problem) {
  const auto sum = kernels<Kernels>().sum[kernel_index(out)];
  const StackView view = {stack.const_data_ptr(), stack.stride(0), stack.stride(1),
                          stack.stride(2)};
  const int64_t groups = group_count(layer.in_features);
  const int64_t tile_elements = kTileOuts * kGroupColumns * std::max<int64_t>(1, layer.masks);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / tile_elements);
  const int64_t tasks = ceil_div(layer.out_features, kTileOuts) * groups;
  parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      sum(problem, view, tile_outs(layer, k / groups), k % groups, out.mutable_data_ptr());
    }
  });
}

Tensor sum_of_stack(const Tensor& stack, const Tensor& rng_state,
                    const std::optional<Tensor>& mask_bits, double p, int64_t masks, double scale) {
  const Layer layer = layer_of_stack(stack, p, masks, scale);
  const DropConnectProblem problem = problem_of(layer, rng_state, mask_bits);
  const Tensor out =
      on_huge_pages(empty({layer.out_features, layer.in_features}, dtype_of(stack), stack));
  if (out.numel() == 0) return out;
  if (masks == 1) {  // nothing to add up
    apply_into(out, {stack.const_data_ptr(), stack.stride(1), stack.stride(2)}, layer, problem);
  } else {
    sum_into(out, stack, layer, problem);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("mask_weight", TORCH_BOX(&forward));
  m.impl("mask_weight_sum", TORCH_BOX(&sum_of_stack));
}

}  // namespace fused_dropout::mask_weight
