// Where `rows_per_mask` rows share a mask M, their products are those of a dense layer:
//
//   output   = input (scale M weight)^T + scale m bias
//   d_input  = grad (scale M weight)
//   d_weight = the sum over masks of scale M (grad^T input)
//
// shared_mask_products.h says how masked weights are made and multiplied, and what memory that
// takes.
//
// A dropped product must add 0 where an operand is infinite or NaN, and 0 * NaN is NaN. So an input
// or grad_output that is not finite is left to the kernels, which skip dropped products; d_weight
// is masked after the product.
//
// Types: float and double are multiplied as they are. fp16 is widened first, and so is bf16 but
// where the processor multiplies it in tiles (AMX): elsewhere torch's own product of the two takes
// as long as that of floats, and six times as long on AVX2.
//
// Sums within a product run in the library's order, which may depend on the number of threads.
#include "dropconnect_shared.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "../ops/checks.h"
#include "dispatch.h"
#include "mask_weight.h"
#include "matrices.h"
#include "parallel.h"
#include "shared_mask_products.h"

namespace fused_dropout::dropconnect {
namespace {

// From how many rows to a mask on a product takes less time than the kernels of this instruction
// set: the fewer, the slower they are. Both ways were measured in one process on Sapphire Rapids,
// layers of 64 to 1024 features; bench/mask_weight.py shows what comes of it. torch multiplies bf16
// in tiles so much faster than the kernels do that fewer rows pay.
int64_t fewest_rows(ScalarType type) {
  switch (current_isa()) {
    case Isa::kAvx512:
      return type == ScalarType::kBFloat16 && multiplies_bfloats() ? 16 : 24;
    case Isa::kAvx2:
      return 8;
    case Isa::kPlain:
      return 2;
  }
  return 2;
}

bool is_finite(const MatrixView& matrix, ScalarType type, int64_t rows, int64_t cols) {
  // Runs of neighbours where there are any, and repeated ones once.
  int64_t runs = matrix.row_stride == 0 ? 1 : rows;
  int64_t length = matrix.col_stride == 0 ? 1 : cols;
  int64_t run_stride = matrix.row_stride;
  int64_t stride = matrix.col_stride;
  if (stride != 1 && run_stride == 1) {
    std::swap(runs, length);
    std::swap(run_stride, stride);
  }
  const auto all_finite = kernels<mask_weight::Kernels>().all_finite[static_cast<int>(type)];
  const char* const data = static_cast<const char*>(matrix.data);
  std::atomic<bool> found{true};
  const int64_t grain = std::max<int64_t>(1, kGrainElements / length);
  parallel_for(0, runs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end && found.load(std::memory_order_relaxed); ++k) {
      if (!all_finite(data + k * run_stride * bytes_of(type), stride, length)) found = false;
    }
  });
  return found;
}

// The bias of every mask, added to the rows that share it.
class MaskedBias {
 public:
  MaskedBias(const ForwardArgs& args, ScalarType type) : args_(args), wide_(sum_type(type)) {
    if (args.bias == nullptr) return;
    const int64_t outs = args.problem.out_features;
    bias_ = wide_.hold(1, 1, outs);
    convert({args.bias, type, 1, 1, outs, 0, 0, args.bias_stride}, bias_);
  }

  // `sums` are the products of some masks' rows for the output features `outs`.
  void add(Range masks, Range outs, const Matrices& sums) const {
    if (args_.bias == nullptr) return;
    Buffer memory(bias_.type);
    const Matrices row = memory.hold(1, 1, outs.size());
    const auto add_row = kernels<mask_weight::Kernels>().add_row[static_cast<int>(sums.type)];
    const int64_t grain = std::max<int64_t>(1, kGrainElements / outs.size());
    for (int64_t k = 0; k < masks.size(); ++k) {
      if (row.type == ScalarType::kFloat64) {
        keep(masks.begin + k, outs, static_cast<double*>(const_cast<void*>(row.data)));
      } else {
        keep(masks.begin + k, outs, static_cast<float*>(const_cast<void*>(row.data)));
      }
      parallel_for(0, sums.rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const Matrices out = sums.part({k, k + 1}, {r, r + 1}, {0, outs.size()});
          add_row(row.data, outs.size(), const_cast<void*>(out.data));
        }
      });
    }
  }

 private:
  static ScalarType sum_type(ScalarType type) {
    return type == ScalarType::kFloat64 ? type : ScalarType::kFloat32;
  }

  template <class R>
  void keep(int64_t mask, Range outs, R* row) const {
    const uint32_t* const bits =
        args_.bias_bits + mask * group_count(args_.problem.out_features) * kGroupWords;
    const R* const bias = static_cast<const R*>(bias_.data);
    const R scale = static_cast<R>(args_.problem.scale);
    for (int64_t o = outs.begin; o < outs.end; ++o) {
      row[o - outs.begin] = bits[o / 32] >> (o % 32) & 1 ? scale * bias[o] : R(0);
    }
  }

  const ForwardArgs& args_;
  Buffer wide_;
  Matrices bias_{};
};

// Multiply-adds below which calling torch costs more than it brings.
constexpr int64_t kLeastWork = 1 << 15;

bool pays(const DropConnectProblem& problem, ScalarType type) {
  return std::min(problem.rows_per_mask, problem.rows) >= fewest_rows(type) &&
         problem.rows * problem.in_features * problem.out_features >= kLeastWork;
}

}  // namespace

bool forward_by_products(const ForwardArgs& args, ScalarType type) {
  const DropConnectProblem& problem = args.problem;
  if (!pays(problem, type) || !is_finite(args.input, type, problem.rows, problem.in_features)) {
    return false;
  }
  const Products products(problem, type, problem.in_features);
  const MaskedBias bias(args, type);
  products.multiply_weights<true>(
      args.weight, args.input, args.output,
      [&](Range masks, Range cols, const Matrices& sums) { bias.add(masks, cols, sums); });
  return true;
}

BackwardArgs backward_by_products(const BackwardArgs& args, ScalarType type) {
  const DropConnectProblem& problem = args.problem;
  BackwardArgs left = args;
  if (!pays(problem, type)) return left;
  if (args.d_weight != nullptr) {
    Products(problem, type, 0).multiply_gradients(args.grad_output, args.input, args.d_weight);
    left.d_weight = nullptr;
  }
  if (args.d_input != nullptr &&
      is_finite(args.grad_output, type, problem.rows, problem.out_features)) {
    const Products products(problem, type, problem.out_features);
    products.multiply_weights<false>(args.weight, args.grad_output, args.d_input,
                                     [](Range, Range, const Matrices&) {});
    left.d_input = nullptr;
  }
  return left;
}

}  // namespace fused_dropout::dropconnect
