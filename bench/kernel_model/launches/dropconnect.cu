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
  DropConnectProblem problem = {rule_of(p, kStreamMask), rows,   in_features, out_features, 1,
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

// `stores`: the masks that are drawn are stored.
int forward(int64_t rows, int64_t in_features, int64_t out_features, double p, bool stored,
            bool stores) {
  const DropConnectProblem problem = problem_of(rows, in_features, out_features, p, stored);
  dropconnect::Forward<float> pass(problem, dense("input", rows, in_features),
                                   dense("weight", out_features, in_features),
                                   dropconnect::forward_slots<float>(stored));
  const int64_t words = group_count(in_features) * rows * stored_outs(out_features) * kGroupWords;
  return pass.launch(rng(), {memory<float>("bias", out_features), 1},
                     memory<float>("workspace", pass.workspace()),
                     memory<float>("result", rows * out_features),
                     stores ? memory<uint32_t>("bits_out", words) : nullptr, nullptr);
}

int gradients(int64_t rows, int64_t in_features, int64_t out_features, double p, bool stored,
              bool d_input, bool d_weight) {
  const DropConnectProblem problem = problem_of(rows, in_features, out_features, p, stored);
  const MatrixView input = dense("input", rows, in_features);
  const MatrixView weight = dense("weight", out_features, in_features);
  dropconnect::Gradients<float> pass(problem, dense("grad", rows, out_features),
                                     d_input ? &weight : nullptr, d_weight ? &input : nullptr,
                                     dropconnect::gradient_slots<float>(stored));
  return pass.launch(rng(), memory<float>("workspace", pass.workspace()),
                     d_input ? memory<float>("d_input", rows * in_features) : nullptr,
                     d_weight ? memory<float>("d_weight", out_features * in_features) : nullptr,
                     nullptr);
}

}  // namespace

extern "C" {

int dropconnect_forward(int64_t rows, int64_t in_features, int64_t out_features, double p,
                        int64_t stored) {
  return forward(rows, in_features, out_features, p, stored != 0, false);
}

// Draws the masks and stores them.
int dropconnect_forward_and_bits(int64_t rows, int64_t in_features, int64_t out_features, double p,
                                 int64_t) {
  return forward(rows, in_features, out_features, p, false, true);
}

int dropconnect_d_input(int64_t rows, int64_t in_features, int64_t out_features, double p,
                        int64_t stored) {
  return gradients(rows, in_features, out_features, p, stored != 0, true, false);
}

int dropconnect_d_weight(int64_t rows, int64_t in_features, int64_t out_features, double p,
                         int64_t stored) {
  return gradients(rows, in_features, out_features, p, stored != 0, false, true);
}

int dropconnect_d_both(int64_t rows, int64_t in_features, int64_t out_features, double p,
                       int64_t stored) {
  return gradients(rows, in_features, out_features, p, stored != 0, true, true);
}

int dropconnect_d_bias(int64_t rows, int64_t out_features, double p) {
  const dropconnect::Slices slices = dropconnect::bias_slices(rows, out_features);
  return dropconnect::launch_bias_grad<float>(
      rule_of(p, kStreamBias), rng(), dense("grad", rows, out_features), rows, out_features, 1,
      slices, 1 / (1 - p),
      memory<float>("workspace", dropconnect::slice_count(slices) * out_features),
      memory<float>("result", out_features), nullptr);
}

// The masks that forward and backward read where they are stored.
int dropconnect_store_masks(int64_t rows, int64_t in_features, int64_t out_features, double p) {
  const DropConnectProblem problem = problem_of(rows, in_features, out_features, p, true);
  DropConnectProblem drawn = problem;
  drawn.mask_bits = nullptr;
  return dropconnect::launch_store_masks(drawn, rng(), 0, const_cast<uint32_t*>(problem.mask_bits),
                                         nullptr);
}

}  // extern "C"
}  // namespace fused_dropout
