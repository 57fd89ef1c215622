// Per-example DropConnect: the three products of csrc/cpu/simd/ops/dropconnect.h, with the mask
// bits as predicates of the multiply-adds.
//
//   output[n, o]   = scale * (sum_i M[n, o, i] weight[o, i] input[n, i] + m[n, o] bias[o])
//   d_input[n, i]  = scale * sum_o M[n, o, i] weight[o, i] grad[n, o]
//   d_weight[o, i] = scale * sum_n M[n, o, i] input[n, i] grad[n, o]
//
// Floor of each: rows * out_features * in_features FFMAs, 4 us at Table 1's shape (128 x 1024 x
// 1024) on an H200 (33e12 a second). `python bench/kernel_report.py --model` counts the issue slots
// of sm_90's code and predicts times.
//
// Launches of a pass: one, if its operands are dense floats or doubles (dropconnect_dense.cuh) and
// no sum is cut; one more where either is not so. A sum is cut into slices where there are too few
// tiles for the device. Partial sums go through a workspace and are added in a fixed order, so
// results do not vary from run to run.
#pragma once

#include "dropconnect_dense.cuh"
#include "dropconnect_forward.cuh"
#include "dropconnect_gradients.cuh"

namespace fused_dropout::dropconnect {
namespace {

// Stored masks, [groups][masks][outs rounded up][4 words], from `first_mask` on.
template <int kPerLane>
__global__ void __launch_bounds__(kMaskThreads)
    store_masks_kernel(DropConnectProblem problem, RngSource rng, int64_t first_mask, int64_t count,
                       Divisor outs, Divisor masks, uint32_t* bits) {
  draw_all<kPerLane>(
      seeded(problem.rule, rng), count,
      [&](int64_t k) {
        const int64_t run = quotient(k, outs);  // of the outs of one mask and group
        const int64_t group = quotient(run, masks);
        // Those past out_features are never looked at.
        const int64_t mask = first_mask + run - group * masks.value;
        return group_number(problem, mask, k - run * outs.value, group);
      },
      [&](int64_t k, const GroupBits& drawn) { store_group(bits + k * kGroupWords, drawn); });
}

// ---- launches -----------------------------------------------------------------------------------

// Fills a tensor of stored masks for `problem`, whose own mask_bits are null and whose masks are
// counted from `first_mask` on.
inline cudaError_t launch_store_masks(const DropConnectProblem& problem, const RngSource& rng,
                                      int64_t first_mask, uint32_t* bits, cudaStream_t stream) {
  const int64_t outs = stored_outs(problem.out_features);
  const int64_t masks = mask_count(problem);
  const int64_t count = group_count(problem.in_features) * masks * outs;
  return launch_by_groups(count, kMaxBlocks, [&](auto per_lane, dim3 blocks) {
    return launch_kernel<store_masks_kernel<decltype(per_lane)::value>>(
        blocks, dim3(kMaskThreads), 0, stream, problem, rng, first_mask, count, make_divisor(outs),
        make_divisor(masks), bits);
  });
}

// Blocks of each kernel that run at the same time on the current device.
template <class T>
int64_t forward_slots(bool stored) {
  constexpr size_t kBytes = sizeof(ForwardShared<Real<T>>);
  return stored ? resident_blocks<forward_kernel<T, true, false>>(kForwardThreads, kBytes)
                : resident_blocks<forward_kernel<T, false, false>>(kForwardThreads, kBytes);
}
template <class T>
int64_t gradient_slots(bool stored) {
  constexpr size_t kBytes = sizeof(GradientShared<Real<T>>);
  return stored ? resident_blocks<gradients_kernel<T, true>>(kGradientThreads, kBytes)
                : resident_blocks<gradients_kernel<T, false>>(kGradientThreads, kBytes);
}

// Whether forward had better store the masks that it draws, rather than read those that another
// launch has stored: that one draws a mask once for all rows that share it, and many digits faster.
inline bool keeps_what_it_draws(const DropConnectProblem& problem) {
  constexpr int kMostDigits = 4;
  return problem.rows_per_mask == 1 && problem.rule.digits <= kMostDigits;
}

// The output of a layer. The workspace, of Real<T>s and aligned to 16 bytes, holds copies of
// operands and partial sums.
template <class T>
class Forward {
 public:
  Forward(const DropConnectProblem& problem, const MatrixView& input, const MatrixView& weight,
          int64_t slots)
      : problem_(problem) {
    operands_.add(input, problem.rows, problem.in_features, Rows::kRuns);
    operands_.add(weight, problem.out_features, problem.in_features, Rows::kRuns);
    tiles_ = ceil_div(problem.rows, kForwardRows) * ceil_div(problem.out_features, kForwardOuts);
    slices_ = slices_of(tiles_, group_count(problem.in_features), slots, {0.25, 0.1});
  }

  int64_t workspace() const {
    const int64_t slices = slice_count(slices_);
    return operands_.elements() + (slices > 1 ? slices * problem_.rows * problem_.out_features : 0);
  }

  // The masks that are drawn are left at `bits_out` too, if it is there.
  cudaError_t launch(const RngSource& rng, const Bias& bias, Real<T>* workspace, T* output,
                     uint32_t* bits_out, cudaStream_t stream) {
    if (problem_.rows * problem_.out_features == 0) return cudaSuccess;
    cudaError_t error = operands_.launch(workspace, stream);
    if (error != cudaSuccess) return error;
    const int64_t slices = slice_count(slices_);
    Real<T>* const partial = workspace + operands_.elements();
    const Divisor rows_per_mask = make_divisor(common_rows(problem_.rows_per_mask, problem_.rows));
    const auto launch_blocks = [&](auto stored, auto keeps) {
      return launch_kernel<forward_kernel<T, decltype(stored)::value, decltype(keeps)::value>>(
          dim3(static_cast<unsigned>(tiles_ * slices)), dim3(kForwardThreads),
          sizeof(ForwardShared<Real<T>>), stream, problem_, rng, rows_per_mask, operands_[0],
          operands_[1], bias, slices_, bits_out, partial, output);
    };
    using std::false_type, std::true_type;
    error = problem_.mask_bits != nullptr ? launch_blocks(true_type(), false_type())
            : bits_out != nullptr         ? launch_blocks(false_type(), true_type())
                                          : launch_blocks(false_type(), false_type());
    if (error != cudaSuccess || slices == 1) return error;
    return launch_finish<T>(partial, slices, problem_.rows, problem_.out_features,
                            common_rows(problem_.rows_per_mask, problem_.rows), problem_.rule, rng,
                            bias, problem_.scale, output, stream);
  }

 private:
  DropConnectProblem problem_;
  DenseOperands<T> operands_;
  int64_t tiles_;
  Slices slices_;
};

// One of the gradients of a layer, or both. `weight` is null where d_input is not wanted, `input`
// where d_weight is not. The workspace is as Forward's.
template <class T>
class Gradients {
 public:
  Gradients(const DropConnectProblem& problem, const MatrixView& grad, const MatrixView* weight,
            const MatrixView* input, int64_t slots)
      : problem_(problem) {
    operands_.add(grad, problem.rows, problem.out_features, Rows::kNeighbours);
    if (weight != nullptr) {
      operands_.add(*weight, problem.out_features, problem.in_features, Rows::kRuns);
      d_input_ = make_part(problem.rows, problem.out_features);
    }
    if (input != nullptr) {
      operands_.add(*input, problem.rows, problem.in_features, Rows::kRuns);
      d_weight_ = make_part(problem.out_features, problem.rows);
    }
    cut(slots);
  }

  int64_t workspace() const {
    return operands_.elements() + d_input_.sums(problem_) + d_weight_.sums(problem_);
  }

  // A result that is not wanted is null.
  cudaError_t launch(const RngSource& rng, Real<T>* workspace, T* d_input, T* d_weight,
                     cudaStream_t stream) {
    cudaError_t error = operands_.launch(workspace, stream);
    Real<T>* const sums = workspace + operands_.elements();
    int panel = 1;
    const Gradient of_input = gradient(d_input_, d_input_.tiles > 0 ? panel++ : 0, sums, d_input);
    const Gradient of_weight = gradient(d_weight_, panel, sums + d_input_.sums(problem_), d_weight);
    const int64_t blocks = of_input.blocks + of_weight.blocks;
    if (error != cudaSuccess || blocks == 0) return error;
    const Divisor rows_per_mask = make_divisor(common_rows(problem_.rows_per_mask, problem_.rows));
    const auto launch_blocks = [&](auto stored) {
      return launch_kernel<gradients_kernel<T, decltype(stored)::value>>(
          dim3(static_cast<unsigned>(blocks)), dim3(kGradientThreads),
          sizeof(GradientShared<Real<T>>), stream, problem_, rng, rows_per_mask, operands_[0],
          of_input, of_weight);
    };
    error = problem_.mask_bits != nullptr ? launch_blocks(std::true_type())
                                          : launch_blocks(std::false_type());
    if (error == cudaSuccess) error = finish(of_input, d_input_, d_input, stream);
    return error != cudaSuccess ? error : finish(of_weight, d_weight_, d_weight, stream);
  }

 private:
  struct Part {
    int64_t results;
    int64_t tiles;
    Slices slices;

    int64_t sums(const DropConnectProblem& problem) const {
      const int64_t count = slice_count(slices);
      return tiles > 0 && count > 1 ? count * results * problem.in_features : 0;
    }
  };

  Part make_part(int64_t results, int64_t sources) const {
    const int64_t tiles = ceil_div(results, kResultRows) * group_count(problem_.in_features);
    return {results, tiles, {ceil_div(sources, kChunk), 1}};
  }

  // Blocks of both run at the same time, so that the sums of both get about the same length.
  void cut(int64_t slots) {
    Slices &a = d_input_.slices, &b = d_weight_.slices;
    if (d_input_.tiles == 0 || d_weight_.tiles == 0) {
      a = slices_of(d_input_.tiles, a.steps, slots, {2, 0.8});
      b = slices_of(d_weight_.tiles, b.steps, slots, {2, 0.8});
      return;
    }
    const int64_t work = d_input_.tiles * a.steps + d_weight_.tiles * b.steps;
    const int64_t longest = std::max(a.steps, b.steps);
    for (int64_t length = std::max<int64_t>(ceil_div(work, slots), 1);; ++length) {
      a = slices_of_length(a.steps, length);
      b = slices_of_length(b.steps, length);
      const int64_t blocks = d_input_.tiles * slice_count(a) + d_weight_.tiles * slice_count(b);
      if (blocks <= slots || length >= longest) return;
    }
  }

  Gradient gradient(const Part& part, int panel, Real<T>* sums, T* result) const {
    return {operands_[panel], part.slices, part.tiles * slice_count(part.slices), sums, result};
  }

  cudaError_t finish(const Gradient& gradient, const Part& part, T* result, cudaStream_t stream) {
    if (part.sums(problem_) == 0) return cudaSuccess;
    return launch_finish<T>(static_cast<const Real<T>*>(gradient.partial), slice_count(part.slices),
                            part.results, problem_.in_features, 1, MaskRule{}, RngSource{}, Bias{},
                            problem_.scale, result, stream);
  }

  DropConnectProblem problem_;
  DenseOperands<T> operands_;
  Part d_input_ = {}, d_weight_ = {};
};

}  // namespace
}  // namespace fused_dropout::dropconnect
