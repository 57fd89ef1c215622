// IMPL(CPU) of DropConnect's moments: checks, cutting the work, parallel_for.
//
// Many rows are two of torch's matrix products, of the operands and of their squares. The squares
// of the weight are made some output features at a time: kTileElements of them (twice as many
// numbers where 16-bit weights are widened too), and those of the input at once. Sums within a
// product run in the library's order, which may depend on the number of threads; all others depend
// on the shapes alone.
#include "dropconnect_moments.h"

#include <algorithm>
#include <tuple>

#include "../ops/dropconnect_moments.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "matrices.h"
#include "parallel.h"

namespace fused_dropout::dropconnect_moments {
namespace {

constexpr int64_t kSerialWork = 1 << 15;    // multiply-adds of a task, at least
constexpr int64_t kTileElements = 1 << 20;  // of the weight, whose squares are in memory at a time
constexpr int64_t kBlockOuts = 32;          // output features of a task

// From how many rows on two products take less time than the kernels of this instruction set.
int64_t fewest_rows() { return current_isa() == Isa::kPlain ? 4 : 48; }

ScalarType sum_type(ScalarType type) {
  return type == ScalarType::kFloat64 ? type : ScalarType::kFloat32;
}

// A matrix as a product takes it, and its squares. It is copied where it must be widened, or where
// the product would go through its other strides in another order.
class Squared {
 public:
  explicit Squared(ScalarType type)
      : type_(type), wide_(sum_type(type)), squares_(sum_type(type)) {}

  // Rows are `stride` elements long; with `copies` every matrix is copied.
  void take(const MatrixView& view, Range rows, int64_t cols, int64_t stride, bool copies) {
    const int64_t bytes = bytes_of(sum_type(type_));
    squares = squares_.hold(1, rows.size(), cols, stride);
    wide = {static_cast<const char*>(view.data) + rows.begin * view.row_stride * bytes_of(type_),
            type_,
            1,
            rows.size(),
            cols,
            0,
            view.row_stride,
            view.col_stride};
    const bool is_dense = view.col_stride == 1 && view.row_stride >= cols;
    const bool is_copied = copies || !is_dense || type_ != sum_type(type_);
    if (is_copied) wide = wide_.hold(1, rows.size(), cols, stride);
    const auto square = kernels<Kernels>().square[static_cast<int>(type_)];
    const int64_t grain = std::max<int64_t>(1, kSerialWork / std::max<int64_t>(1, cols));
    parallel_for(0, rows.size(), grain, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * stride * bytes;
      char* const to = static_cast<char*>(const_cast<void*>(wide.data)) + first;
      char* const to_squares = static_cast<char*>(const_cast<void*>(squares.data)) + first;
      square(view, {rows.begin + begin, rows.begin + end}, cols, is_copied ? to : nullptr,
             to_squares, stride);
    });
  }

  Matrices wide, squares;

 private:
  ScalarType type_;
  Buffer wide_, squares_;
};

void by_kernels(const MomentsProblem& problem, ScalarType type, void* mean, void* variance) {
  Squared input(type);
  const int64_t stride =
      std::max<int64_t>(1, ceil_div(problem.in_features, kMostLanes)) * kMostLanes;
  input.take(problem.input, {0, problem.rows}, problem.in_features, stride, true);
  const auto apply = kernels<Kernels>().apply[static_cast<int>(type)];
  const int64_t block_work = problem.rows * problem.in_features * kBlockOuts;
  const int64_t grain = std::max<int64_t>(1, kSerialWork / std::max<int64_t>(1, block_work));
  const int64_t blocks = ceil_div(problem.out_features, kBlockOuts);
  parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    const Range outs = {begin * kBlockOuts, std::min(end * kBlockOuts, problem.out_features)};
    apply(problem, input.wide.data, input.squares.data, stride, outs, mean, variance);
  });
}

void by_products(const MomentsProblem& problem, ScalarType type, void* mean, void* variance) {
  const int64_t ins = problem.in_features, all_outs = problem.out_features;
  Squared input(type), weight(type);
  input.take(problem.input, {0, problem.rows}, ins, ins, false);
  const Matrices means = {mean, sum_type(type), 1, problem.rows, all_outs, 0, all_outs, 1};
  Matrices variances = means;
  variances.data = variance;
  const int64_t step = std::max(kBlockOuts, kTileElements / std::max<int64_t>(1, ins));
  for_each_stretch(all_outs, step, [&](Range outs) {
    weight.take(problem.weight, outs, ins, ins, false);
    multiply(input.wide, weight.wide.transposed(), means.part({0, 1}, means.all_rows(), outs));
    multiply(input.squares, weight.squares.transposed(),
             variances.part({0, 1}, variances.all_rows(), outs));
  });
  const auto finish = kernels<Kernels>().finish[static_cast<int>(type)];
  parallel_for(0, problem.rows, std::max<int64_t>(1, kSerialWork / all_outs),
               [&](int64_t begin, int64_t end) { finish(problem, {begin, end}, mean, variance); });
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight,
                                   const std::optional<Tensor>& bias, double mean_scale,
                                   double variance_scale, bool mask_bias) {
  const MomentsProblem problem =
      make_problem(input, weight, bias, mean_scale, variance_scale, mask_bias);
  const auto new_result = [&] {
    return on_huge_pages(empty({problem.rows, problem.out_features}, sum_dtype(input), input));
  };
  const Tensor mean = new_result();
  const Tensor variance = new_result();
  if (mean.numel() == 0) return {mean, variance};
  const bool are_many = problem.rows >= fewest_rows() && problem.in_features > 0;
  const auto run = are_many ? by_products : by_kernels;
  run(problem, kernel_type(input), mean.mutable_data_ptr(), variance.mutable_data_ptr());
  return {mean, variance};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("dropconnect_moments", TORCH_BOX(&forward));
}

}  // namespace fused_dropout::dropconnect_moments
