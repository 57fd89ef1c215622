// DropConnect whose rows share masks: masked weights, and a library's matrix product of them.
//
//   output   = input (scale M weight)^T + scale m bias
//   d_input  = grad (scale M weight)
//   d_weight = scale * the sum over masks of M (grad^T input)
//
// The masked weights of some masks are made at a time, or a part of one large mask's, by the
// kernels of mask_weight. Workspace: at most kChunkElements weights or products (or one output
// feature, or 128 columns, whatever is more), and for d_weight of many masks as many floats.
// Nothing waits for the device: what is launched depends on shapes alone.
//
// A dropped product must add 0 where an operand is infinite or NaN, and a library adds 0 * NaN. But
// it adds it to every result of a row: where a row of input or grad_output is not finite, none of
// its results are. So a kernel looks at the results, which it has to read anyhow for the bias, and
// computes again those that are not finite, by themselves. d_weight is masked after the product.
//
// Floor: the product's. Predicted, not measured, on an H200 (4.3 TB/s; bf16 products at 650e12 FLOP
// a second):
//
//   [32, 128, 1024] x [1024, 1024] bf16, forward: two chunks of 16 masks, 6 launches. 64 MiB of
//       masked weights written in 17 us, and read from level-2 cache by products of 16 us; 6 us for
//       the bias's bits and the results; 4 us between the kernels. 43 us; the dense product takes
//       13 us, so 3.3 times as long.
//   4096 x 4096 x 4096 bf16, one mask, forward: masked weights 16 us, bias and bits 18 us beside a
//       product of 211 us. 1.16 times as long.
//
// Against the kernels of dropconnect.cuh (predicted: 85 ns a row of 1024 x 1024, whatever the
// dtype): making a mask's weights takes 0.9 us in 16 bits and 1.8 us in floats, whose product takes
// 40 ns a row. So a mask pays from about 11 and 40 rows on. kFewestRows below, 8 and 24, is from
// when those kernels were predicted at 141 ns a row; a GPU is to say where it belongs.
#pragma once

#include "../common/matrices.h"
#include "dropconnect.cuh"
#include "mask_weight.cuh"

namespace fused_dropout::dropconnect {
namespace {

// The bias of a layer and its masks; `data` is null without one.
struct BiasView {
  const void* data;
  int64_t stride;
  const uint32_t* bits;  // [masks, groups of out_features], 4 words each
};

constexpr int kNeighbours = mask_weight::kNeighbours;
using mask_weight::kLeastBlocks;

// A bit for each that is infinite or NaN.
template <class R>
FUSED_DROPOUT_DEVICE unsigned not_finite(const R (&x)[kNeighbours]) {
  unsigned found = 0;
#pragma unroll
  for (int k = 0; k < kNeighbours; ++k) found |= (x[k] - x[k] == R(0) ? 0u : 1u) << k;
  return found;
}

// What the kernels that finish a result know besides its layer.
struct Shared {
  int64_t masks;
  Divisor rows_per_mask;
  Divisor groups;  // of 128 results, in a row of them
};

// The sum over i of the kept weight[out][i] * input[row][i], by a warp; every lane gets it.
template <class T>
FUSED_DROPOUT_DEVICE Real<T> kept_products(const DropConnectProblem& problem, int64_t masks,
                                           const MatrixView& input, const MatrixView& weight,
                                           int64_t row, int64_t mask, int64_t out,
                                           GroupBits* bits) {
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t ins = problem.in_features;
  const int64_t groups = group_count(ins);
  Real<T> sum = 0;
  for (int64_t first = 0; first < groups; first += kWarpLanes) {
    if (first + lane < groups) {
      bits[lane] = group_of_mask(problem, masks, mask, out, first + lane);
    }
    __syncwarp();
    for (int64_t group = first; group < groups && group < first + kWarpLanes; ++group) {
      const uint32_t kept = mask_weight::bits_of_lane(bits[group - first], lane);
#pragma unroll 1
      for (int k = 0; k < kNeighbours; ++k) {
        const int64_t i = group * kGroupColumns + lane * kNeighbours + k;
        if (i >= ins || !(kept >> k & 1)) continue;
        sum = fma(element<T>(weight, out, i, problem.out_features, ins),
                  element<T>(input, row, i, problem.rows, ins), sum);
      }
    }
    __syncwarp();
  }
#pragma unroll
  for (int other = 1; other < kWarpLanes; other *= 2) sum += __shfl_xor_sync(~0u, sum, other);
  return sum;
}

// Finishes output: what the product left that is not finite is computed again, and the bias is
// added. A warp takes 128 output features of a row at a time.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kElementThreads, kLeastBlocks)
    finish_output_kernel(DropConnectProblem problem, RngSource rng, Shared shared, MatrixView input,
                         MatrixView weight, BiasView bias, T* output) {
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  GroupBits* const bits = &drawn[threadIdx.x - lane];
  problem.rule = seeded(problem.rule, rng);
  const Real<T> scale = static_cast<Real<T>>(problem.scale);
  const int64_t outs = problem.out_features;
  const int64_t count = problem.rows * shared.groups.value;
  const int64_t warps = threads_in_grid() / kWarpLanes;
  for (int64_t i = thread_in_grid() / kWarpLanes; i < count; i += warps) {
    const int64_t row = quotient(i, shared.groups);
    const int64_t first = (i - row * shared.groups.value) * kGroupColumns;
    const int64_t out = first + lane * kNeighbours;
    const int64_t mask = quotient(row, shared.rows_per_mask);
    Real<T> x[kNeighbours];
    mask_weight::load_columns<T, kAligned>(output + row * outs, 1, out, outs, x);
    const unsigned spoilt = not_finite(x);
    // One by one, in a loop that is there once: the compiler must not make a function of it.
    unsigned missing = spoilt;
    for (unsigned lanes; (lanes = __ballot_sync(~0u, missing != 0)) != 0;) {
      const int owner = __ffs(static_cast<int>(lanes)) - 1;
      const int place = __ffs(static_cast<int>(__shfl_sync(~0u, missing, owner))) - 1;
      const Real<T> sum = kept_products<T>(problem, shared.masks, input, weight, row, mask,
                                           first + owner * kNeighbours + place, bits);
      if (lane != owner) continue;
      missing &= missing - 1;
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) x[k] = k == place ? scale * sum : x[k];
    }
    if (bias.data != nullptr && out < outs) {
      const uint32_t kept =
          bias.bits[(mask * shared.groups.value) * kGroupWords + out / 32] >> (out % 32);
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) {
        if (out + k < outs && (kept >> k & 1)) {
          x[k] += scale * widen(static_cast<const T*>(bias.data)[(out + k) * bias.stride]);
        }
      }
    }
    if (bias.data != nullptr || spoilt != 0) {
      mask_weight::store_columns<T, kAligned>(x, output + row * outs, out, outs);
    }
  }
}

// Computes again what of d_input is not finite. A warp takes 128 columns of a row at a time.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kElementThreads, kLeastBlocks)
    finish_d_input_kernel(DropConnectProblem problem, RngSource rng, Shared shared, MatrixView grad,
                          MatrixView weight, T* d_input) {
  FUSED_DROPOUT_SHARED(GroupBits, drawn, [kElementThreads]);
  const int lane = threadIdx.x % kWarpLanes;
  GroupBits* const bits = &drawn[threadIdx.x - lane];
  problem.rule = seeded(problem.rule, rng);
  const Real<T> scale = static_cast<Real<T>>(problem.scale);
  const int64_t ins = problem.in_features;
  const int64_t outs = problem.out_features;
  const int64_t count = problem.rows * shared.groups.value;
  const int64_t warps = threads_in_grid() / kWarpLanes;
  for (int64_t i = thread_in_grid() / kWarpLanes; i < count; i += warps) {
    const int64_t row = quotient(i, shared.groups);
    const int64_t group = i - row * shared.groups.value;
    const int64_t col = group * kGroupColumns + lane * kNeighbours;
    Real<T> x[kNeighbours];
    mask_weight::load_columns<T, kAligned>(d_input + row * ins, 1, col, ins, x);
    const unsigned spoilt = not_finite(x);
    if (!__any_sync(~0u, spoilt != 0)) continue;
    const int64_t mask = quotient(row, shared.rows_per_mask);
    Real<T> sum[kNeighbours] = {};
    for (int64_t first = 0; first < outs; first += kWarpLanes) {
      if (first + lane < outs) {
        bits[lane] = group_of_mask(problem, shared.masks, mask, first + lane, group);
      }
      __syncwarp();
      for (int64_t out = first; out < outs && out < first + kWarpLanes; ++out) {
        const uint32_t kept = mask_weight::bits_of_lane(bits[out - first], lane);
        const Real<T> g = element<T>(grad, row, out, problem.rows, outs);
#pragma unroll
        for (int k = 0; k < kNeighbours; ++k) {
          if (kept >> k & 1) sum[k] = fma(element<T>(weight, out, col + k, outs, ins), g, sum[k]);
        }
      }
      __syncwarp();
    }
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) x[k] = spoilt >> k & 1 ? scale * sum[k] : x[k];
    if (spoilt != 0) mask_weight::store_columns<T, kAligned>(x, d_input + row * ins, col, ins);
  }
}

// ---- launches ---------------------------------------------------------------------------------

constexpr int64_t kChunkElements = 1 << 24;
constexpr int64_t kMostMasks = 65535;  // of one batch of products

// Whether products take less time than the kernels of dropconnect.cuh, by the counts above. Below
// kLeastWork multiply-adds either is over before torch has launched a product.
template <class T>
bool products_pay(const DropConnectProblem& problem) {
  constexpr int64_t kFewestRows = sizeof(T) == 2 ? 8 : 24;
  constexpr int64_t kLeastWork = 1 << 25;
  constexpr int64_t kLongest = INT32_MAX;  // that a library's product takes
  const int64_t longest = std::max({problem.rows, problem.in_features, problem.out_features});
  return std::min(problem.rows_per_mask, problem.rows) >= kFewestRows && longest <= kLongest &&
         static_cast<double>(problem.rows) * problem.in_features * problem.out_features >=
             kLeastWork;
}

// Runs the products of a layer. multiply(a, b, out) launches out = a b for matrices or batches of
// them, on the same stream, and reports its errors itself.
template <class T, class Multiply>
class SharedProducts {
 public:
  SharedProducts(const DropConnectProblem& problem, const RngSource& rng, cudaStream_t stream,
                 Multiply multiply, int64_t chunk_elements = kChunkElements)
      : problem_(problem),
        masks_(problem),
        rng_(rng),
        stream_(stream),
        multiply_(multiply),
        chunk_elements_(chunk_elements) {
    problem_.rows_per_mask = std::min(problem.rows_per_mask, problem.rows);
    masks_.rows = mask_count(problem);
    masks_.rows_per_mask = 1;
    const int64_t weight = problem.out_features * problem.in_features;
    masks_at_once_ =
        std::clamp<int64_t>(chunk_elements / weight, 1, std::min(masks_.rows, kMostMasks));
    outs_at_once_ = at_once(problem.in_features, 1, problem.out_features);
    cols_at_once_ = at_once(problem.out_features, kGroupColumns, problem.in_features);
  }

  // Elements of the workspaces that the products take.
  int64_t weights_for_output() const {
    return masks_at_once_ * outs_at_once_ * problem_.in_features;
  }
  int64_t weights_for_d_input() const {
    return masks_at_once_ * problem_.out_features * cols_at_once_;
  }
  int64_t products_for_d_weight() const { return masks_.rows == 1 ? 0 : weights_for_output(); }
  int64_t sums_for_d_weight() const {
    return chunks().count() == 1 ? 0 : outs_at_once_ * problem_.in_features;
  }

  cudaError_t output(const MatrixView& input, const MatrixView& weight, const BiasView& bias,
                     T* weights, T* out) {
    const int64_t outs = problem_.out_features;
    const int64_t ins = problem_.in_features;
    const int64_t groups = group_count(ins);
    for_each_stretch(outs, outs_at_once_, [&](Range o) {
      for_each_chunk([&](const RowChunk& chunk) {
        // Of several masks, all output features.
        make({chunk.masks.begin * outs + o.begin, chunk.masks.size() * o.size(), 0, groups}, weight,
             weights);
        const Matrices made = {weights, kType, chunk.masks.size(), o.size(), ins, o.size() * ins,
                               ins,     1};
        const Matrices to = chunk.of({out, outs, 1}, kType, outs);
        multiply_chunk(chunk.of(input, kType, ins), made.transposed(),
                       to.part(to.all(), to.all_rows(), o));
      });
    });
    return mask_weight::rows_fit<T>(out, outs, outs, 1)
               ? finish<finish_output_kernel<T, true>>(outs, input, weight, bias, out)
               : finish<finish_output_kernel<T, false>>(outs, input, weight, bias, out);
  }

  cudaError_t d_input(const MatrixView& grad, const MatrixView& weight, T* weights, T* result) {
    const int64_t outs = problem_.out_features;
    const int64_t ins = problem_.in_features;
    for_each_stretch(ins, cols_at_once_, [&](Range i) {
      const Range groups = {i.begin / kGroupColumns, group_count(i.end)};
      for_each_chunk([&](const RowChunk& chunk) {
        make({chunk.masks.begin * outs, chunk.masks.size() * outs, groups.begin, groups.size()},
             weight, weights);
        const Matrices made = {weights,  kType,           chunk.masks.size(), outs,
                               i.size(), outs * i.size(), i.size(),           1};
        const Matrices to = chunk.of({result, ins, 1}, kType, ins);
        multiply_chunk(chunk.of(grad, kType, outs), made, to.part(to.all(), to.all_rows(), i));
      });
    });
    return mask_weight::rows_fit<T>(result, ins, ins, 1)
               ? finish<finish_d_input_kernel<T, true>>(ins, grad, weight, result)
               : finish<finish_d_input_kernel<T, false>>(ins, grad, weight, result);
  }

  // `products` and `sums` may be null where they have no elements.
  cudaError_t d_weight(const MatrixView& grad, const MatrixView& input, T* products, Real<T>* sums,
                       T* result) {
    const int64_t outs = problem_.out_features;
    const int64_t ins = problem_.in_features;
    if (masks_.rows == 1) {
      const RowChunk all = {{0, 1}, problem_.rows, 0};
      multiply_chunk(all.of(grad, kType, outs).transposed(), all.of(input, kType, ins),
                     {result, kType, 1, outs, ins, 0, ins, 1});
      make(mask_weight::all_of(masks_), {result, ins, 1}, result);
      return error_;
    }
    for_each_stretch(outs, outs_at_once_, [&](Range o) {
      const Matrices made = {products, kType, masks_at_once_, o.size(), ins, o.size() * ins,
                             ins,      1};
      for_each_chunk([&](const RowChunk& chunk) {
        const Matrices some = made.part({0, chunk.masks.size()}, made.all_rows(), made.all_cols());
        const Matrices of_outs = chunk.of(grad, kType, outs);
        multiply_chunk(of_outs.part(of_outs.all(), of_outs.all_rows(), o).transposed(),
                       chunk.of(input, kType, ins), some);
        if (error_ != cudaSuccess) return;
        error_ = mask_weight::launch_sum_part<T>(
            masks_, rng_, {products, made.stride, ins, 1},
            {chunk.masks.begin, chunk.masks.size(), o.begin, o.size(), sums, chunk.masks.begin == 0,
             chunk.masks.end == masks_.rows},
            result + o.begin * ins, stream_);
      });
    });
    return error_;
  }

 private:
  static constexpr ScalarType kType = kScalarType<T>;

  // How much of one mask's weights, in steps of `step` times `length` elements, is made at once.
  int64_t at_once(int64_t length, int64_t step, int64_t all) const {
    if (masks_at_once_ > 1) return all;
    const int64_t steps = std::max<int64_t>(1, chunk_elements_ / (length * step));
    return std::min(all, steps * step);
  }

  Chunks chunks() const { return Chunks(problem_, masks_at_once_); }

  template <class F>
  void for_each_chunk(F f) const {
    const Chunks all = chunks();
    for (int64_t k = 0; k < all.count(); ++k) f(all[k]);
  }

  void make(const mask_weight::ApplyPart& part, const MatrixView& weight, T* weights) {
    if (error_ != cudaSuccess) return;
    error_ = mask_weight::launch_apply<T>(masks_, rng_, weight, part, weights, stream_);
  }

  void multiply_chunk(const Matrices& a, const Matrices& b, const Matrices& out) {
    if (error_ == cudaSuccess) multiply_(a, b, out);
  }

  // Launches a kernel that finishes results [rows, cols].
  template <auto kKernel, class... Arguments>
  cudaError_t finish(int64_t cols, const Arguments&... arguments) {
    if (error_ != cudaSuccess) return error_;
    const Shared shared = {masks_.rows, make_divisor(problem_.rows_per_mask),
                           make_divisor(group_count(cols))};
    const dim3 blocks = element_blocks(problem_.rows * shared.groups.value * kWarpLanes);
    return launch_kernel<kKernel>(blocks, dim3(kElementThreads), 0, stream_, problem_, rng_, shared,
                                  arguments...);
  }

  DropConnectProblem problem_;
  DropConnectProblem masks_;  // with one row for each mask
  RngSource rng_;
  cudaStream_t stream_;
  Multiply multiply_;
  int64_t chunk_elements_;
  int64_t masks_at_once_, outs_at_once_, cols_at_once_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace
}  // namespace fused_dropout::dropconnect
