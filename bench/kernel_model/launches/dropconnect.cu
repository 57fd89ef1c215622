// Launches of DropConnect with a mask for each example, as ../../../csrc/cuda/dropconnect.cu makes
// them: dense float operands. `stored` reads the masks instead of drawing them.
#include "../../../csrc/cuda/dropconnect.cuh"
#include "memory.h"

// Not in a second unnamed namespace beside fused_dropout's: nvcc would confuse the two.
namespace fused_dropout {
namespace {

RngSource rng() { return rng_from_state(memory<int64_t>("rng_state", 2)); }

MaskRule rule_of(double p, MaskStream stream) {
  return make_mask_rule(0, 0, stream, p, kDefaultDigits);
}

DropConnectProblem problem_of(int64_t rows, int64_t in_features, int64_t out_features, double p,
                              bool stored) {
  DropConnectProblem problem = {rule_of(p, kStreamMask), rows, in_features, out_features, 1,
                                p < 1 ? 1 / (1 - p) : 0, nullptr};
  if (stored) {
    const int64_t groups = group_count(in_features) * rows * stored_outs(out_features);
    problem.mask_bits = memory<uint32_t>("mask_bits", groups * kGroupWords);
  }
  return problem;
}

MatrixView dense(const char* name, int64_t rows, int64_t cols) {
  return {memory<float>(name, rows * cols), cols, 1};
}

// The mask of the bias [rows, out_features], which forward and d_bias draw.
int draw_bias_bits(int64_t rows, int64_t out_features, double p, uint32_t** bits) {
  const int64_t groups = rows * group_count(out_features);
  *bits = memory<uint32_t>("bias_bits", groups * kGroupWords);
  return launch_draw_groups(rule_of(p, kStreamBias), rng(), 0, 1, groups, *bits, nullptr);
}

template <bool kOutsAreResults>
int outer(int64_t rows, int64_t in_features, int64_t out_features, double p, bool stored) {
  const DropConnectProblem problem = problem_of(rows, in_features, out_features, p, stored);
  const MatrixView panel = kOutsAreResults ? dense("input", rows, in_features)
                                           : dense("weight", out_features, in_features);
  const int64_t results = (kOutsAreResults ? out_features : rows) * in_features;
  float* const workspace =
      memory<float>("workspace", dropconnect::outer_slices<kOutsAreResults>(problem) * results);
  return dropconnect::launch_outer<float, kOutsAreResults>(
      problem, rng(), panel, dense("grad", rows, out_features), workspace,
      memory<float>("result", results), nullptr);
}

}  // namespace

extern "C" {

int dropconnect_forward(int64_t rows, int64_t in_features, int64_t out_features, double p,
                        int64_t stored) {
  const DropConnectProblem problem = problem_of(rows, in_features, out_features, p, stored != 0);
  const int64_t results = rows * out_features;
  uint32_t* bias_bits = nullptr;
  if (const int error = draw_bias_bits(rows, out_features, p, &bias_bits)) return error;
  const dropconnect::BiasView bias = {memory<float>("bias", out_features), 1, bias_bits, 1};
  float* const workspace =
      memory<float>("workspace", dropconnect::forward_slices(problem) * results);
  return dropconnect::launch_forward<float>(problem, rng(), dense("input", rows, in_features),
                                            dense("weight", out_features, in_features), bias,
                                            workspace, memory<float>("result", results), nullptr);
}

int dropconnect_d_input(int64_t rows, int64_t in_features, int64_t out_features, double p,
                        int64_t stored) {
  return outer<false>(rows, in_features, out_features, p, stored != 0);
}

int dropconnect_d_weight(int64_t rows, int64_t in_features, int64_t out_features, double p,
                         int64_t stored) {
  return outer<true>(rows, in_features, out_features, p, stored != 0);
}

int dropconnect_d_bias(int64_t rows, int64_t out_features, double p) {
  uint32_t* bits = nullptr;
  if (const int error = draw_bias_bits(rows, out_features, p, &bits)) return error;
  return dropconnect::launch_bias_grad<float>(dense("grad", rows, out_features), rows, out_features,
                                              1, bits, 1 / (1 - p),
                                              memory<float>("result", out_features), nullptr);
}

// The masks that forward and backward read where they are stored.
int dropconnect_store_masks(int64_t rows, int64_t in_features, int64_t out_features, double p) {
  const DropConnectProblem problem = problem_of(rows, in_features, out_features, p, true);
  DropConnectProblem drawn = problem;
  drawn.mask_bits = nullptr;
  return dropconnect::launch_store_masks(drawn, rng(), const_cast<uint32_t*>(problem.mask_bits),
                                         nullptr);
}

}  // extern "C"
}  // namespace fused_dropout
