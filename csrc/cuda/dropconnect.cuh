// Per-example DropConnect: the three products of csrc/cpu/simd/ops/dropconnect.h, with the mask
// bits as predicates of the multiply-adds.
//
//   output[n, o]   = scale * (sum_i M[n, o, i] weight[o, i] input[n, i] + m[n, o] bias[o])
//   d_input[n, i]  = scale * sum_o M[n, o, i] weight[o, i] grad[n, o]
//   d_weight[o, i] = scale * sum_n M[n, o, i] input[n, i] grad[n, o]
//
// Floor of each: rows * out_features * in_features FFMAs, 4 us at Table 1's shape (128 x 1024 x
// 1024) on an H200 (33e12 a second). Issue slots in sm_90's code for 128 columns of a (row, output)
// pair, forward: the main loop takes 194, of which 128 are FFMAs (8 of them take one R2P, one ISETP
// and one LOP3 besides, and 64 to 128 share 9 to 16 shared loads); filling the tiles 114; drawing
// at one digit 202, each further digit 97, or reading stored masks 106. So at most 25 % of the FFMA
// rate drawing and 31 % reading, and less as far as 8 warps on a multiprocessor cannot hide
// latencies. More digits: draw once, store, read twice. Launch: the sum is split over blocks until
// kTargetBlocks run; partial sums go through a workspace and are added in a fixed order, so results
// do not vary from run to run.
#pragma once

#include "dropconnect_forward.cuh"
#include "dropconnect_outer.cuh"

namespace fused_dropout::dropconnect {
namespace {

// The bias of a layer for finish_kernel; `data` is null without one.
struct BiasView {
  const void* data;
  int64_t stride;
  const uint32_t* bits;  // [masks, groups of out_features], 4 words each
  int64_t rows_per_mask;
};

FUSED_DROPOUT_DEVICE bool bias_kept(const uint32_t* bits, int64_t mask, int64_t out,
                                    int64_t out_features) {
  const int64_t word = mask * group_count(out_features) * kGroupWords + out / 32;
  return bits[word] >> (out % 32) & 1;
}

// result = scale * (partial sums + kept bias), for results [rows, cols].
template <class T>
__global__ void __launch_bounds__(kMaskThreads)
    finish_kernel(const Real<T>* partial, int64_t slices, int64_t rows, int64_t cols, BiasView bias,
                  double scale, T* result) {
  const int64_t count = rows * cols;
  for (int64_t k = thread_in_grid(); k < count; k += threads_in_grid()) {
    Real<T> sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * count + k];
    if (bias.data != nullptr) {
      const int64_t row = quotient(k, cols);
      const int64_t out = k - row * cols;
      if (bias_kept(bias.bits, quotient(row, bias.rows_per_mask), out, cols)) {
        sum += widen(static_cast<const T*>(bias.data)[out * bias.stride]);
      }
    }
    narrow(sum * static_cast<Real<T>>(scale), &result[k]);
  }
}

constexpr int kBiasWarps = 8;
constexpr int kBiasThreads = kBiasWarps * kWarpLanes;

// d_bias[o] = scale * sum_n m[n, o] grad[n, o]. A warp reads 32 neighbours of every kBiasWarps-th
// row; the sums of the block's warps are added in order.
template <class T>
__global__ void __launch_bounds__(kBiasThreads)
    bias_grad_kernel(MatrixView grad, int64_t rows, int64_t out_features, int64_t rows_per_mask,
                     const uint32_t* bits, double scale, T* d_bias) {
  FUSED_DROPOUT_SHARED(Real<T>, partial, [kBiasWarps][kWarpLanes]);
  const int lane = threadIdx.x % kWarpLanes;
  const int warp = threadIdx.x / kWarpLanes;
  const int64_t out = int64_t{blockIdx.x} * kWarpLanes + lane;
  Real<T> sum = 0;
  for (int64_t row = warp; row < rows; row += kBiasWarps) {
    if (bias_kept(bits, quotient(row, rows_per_mask), out, out_features)) {
      sum += element<T>(grad, row, out, rows, out_features);
    }
  }
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || out >= out_features) return;
  for (int other = 1; other < kBiasWarps; ++other) sum += partial[other][lane];
  narrow(sum * static_cast<Real<T>>(scale), &d_bias[out]);
}

// Stored masks, [groups][masks][outs rounded up][4 words], as mask_group reads them.
__global__ void __launch_bounds__(kMaskThreads)
    store_masks_kernel(DropConnectProblem problem, RngSource rng, int64_t count, uint32_t* bits) {
  problem.rule = seeded(problem.rule, rng);
  const int64_t outs = stored_outs(problem.out_features);
  const int64_t masks = mask_count(problem);
  for (int64_t k = thread_in_grid(); k < count; k += threads_in_grid()) {
    const int64_t run = quotient(k, outs);  // of the outs of one mask and group
    const int64_t group = quotient(run, masks);
    const int64_t mask = run - group * masks;
    // Those past out_features are never looked at.
    store_group(bits + k * kGroupWords,
                mask_group(problem, mask * problem.rows_per_mask, k - run * outs, group));
  }
}

// ---- launches ---------------------------------------------------------------------------------

constexpr int64_t kTargetBlocks = 264;  // two for each of an H200's 132 multiprocessors

// How many slices the sum of `steps` steps is cut into, so that tiles * slices fill the device.
FUSED_DROPOUT_INLINE int64_t slices_for(int64_t tiles, int64_t steps, int64_t target_blocks) {
  if (tiles == 0 || steps == 0) return 1;
  const int64_t wanted = ceil_div(target_blocks, tiles);
  return wanted < steps ? wanted : steps;
}

FUSED_DROPOUT_INLINE int64_t forward_slices(const DropConnectProblem& problem,
                                            int64_t target_blocks = kTargetBlocks) {
  const int64_t tiles =
      ceil_div(problem.rows, kForwardRows) * ceil_div(problem.out_features, kForwardOuts);
  return slices_for(tiles, group_count(problem.in_features), target_blocks);
}

template <bool kOutsAreResults>
FUSED_DROPOUT_INLINE int64_t outer_slices(const DropConnectProblem& problem,
                                          int64_t target_blocks = kTargetBlocks) {
  const int64_t results = kOutsAreResults ? problem.out_features : problem.rows;
  const int64_t sources = kOutsAreResults ? problem.rows : problem.out_features;
  const int64_t tiles = ceil_div(results, kResultRows) * group_count(problem.in_features);
  return slices_for(tiles, ceil_div(sources, kChunk), target_blocks);
}

// Fills a tensor of stored masks for `problem`, whose own mask_bits are null.
inline cudaError_t launch_store_masks(const DropConnectProblem& problem, const RngSource& rng,
                                      uint32_t* bits, cudaStream_t stream) {
  const int64_t count =
      group_count(problem.in_features) * mask_count(problem) * stored_outs(problem.out_features);
  if (count == 0) return cudaSuccess;
  return launch_kernel<store_masks_kernel>(mask_blocks(count, kMaxBlocks), dim3(kMaskThreads), 0,
                                           stream, problem, rng, count, bits);
}

template <class T>
cudaError_t launch_finish(const Real<T>* partial, int64_t slices, int64_t rows, int64_t cols,
                          const BiasView& bias, double scale, T* result, cudaStream_t stream) {
  return launch_kernel<finish_kernel<T>>(mask_blocks(rows * cols, kMaxBlocks), dim3(kMaskThreads),
                                         0, stream, partial, slices, rows, cols, bias, scale,
                                         result);
}

// `workspace` holds forward_slices(problem) * rows * out_features sums.
template <class T>
cudaError_t launch_forward(const DropConnectProblem& problem, const RngSource& rng,
                           const MatrixView& input, const MatrixView& weight, const BiasView& bias,
                           Real<T>* workspace, T* output, cudaStream_t stream,
                           int64_t target_blocks = kTargetBlocks) {
  if (problem.rows * problem.out_features == 0) return cudaSuccess;
  const int64_t slices = forward_slices(problem, target_blocks);
  const int64_t blocks =
      ceil_div(problem.rows, kForwardRows) * ceil_div(problem.out_features, kForwardOuts) * slices;
  const cudaError_t error = launch_kernel<forward_kernel<T>>(
      dim3(static_cast<unsigned>(blocks)), dim3(kBlockThreads), sizeof(ForwardShared<Real<T>>),
      stream, problem, rng, input, weight, slices, workspace);
  if (error != cudaSuccess) return error;
  return launch_finish<T>(workspace, slices, problem.rows, problem.out_features, bias,
                          problem.scale, output, stream);
}

// d_weight (kOutsAreResults, panel = input) or d_input (panel = weight). `workspace` holds
// outer_slices<kOutsAreResults>(problem) times the result.
template <class T, bool kOutsAreResults>
cudaError_t launch_outer(const DropConnectProblem& problem, const RngSource& rng,
                         const MatrixView& panel, const MatrixView& grad, Real<T>* workspace,
                         T* result, cudaStream_t stream, int64_t target_blocks = kTargetBlocks) {
  const int64_t results = kOutsAreResults ? problem.out_features : problem.rows;
  if (results * problem.in_features == 0) return cudaSuccess;
  const int64_t slices = outer_slices<kOutsAreResults>(problem, target_blocks);
  const int64_t blocks = ceil_div(results, kResultRows) * group_count(problem.in_features) * slices;
  const cudaError_t error = launch_kernel<outer_kernel<T, kOutsAreResults>>(
      dim3(static_cast<unsigned>(blocks)), dim3(kBlockThreads), sizeof(OuterShared<Real<T>>),
      stream, problem, rng, panel, grad, slices, workspace);
  if (error != cudaSuccess) return error;
  return launch_finish<T>(workspace, slices, results, problem.in_features, BiasView{},
                          problem.scale, result, stream);
}

template <class T>
cudaError_t launch_bias_grad(const MatrixView& grad, int64_t rows, int64_t out_features,
                             int64_t rows_per_mask, const uint32_t* bits, double scale, T* d_bias,
                             cudaStream_t stream) {
  if (out_features == 0) return cudaSuccess;
  return launch_kernel<bias_grad_kernel<T>>(
      dim3(static_cast<unsigned>(ceil_div(out_features, kWarpLanes))), dim3(kBiasThreads), 0,
      stream, grad, rows, out_features, rows_per_mask, bits, scale, d_bias);
}

}  // namespace
}  // namespace fused_dropout::dropconnect
