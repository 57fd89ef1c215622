// What the DropConnect kernels share: element types, operands of any strides, mask bits.
#pragma once

#include "elements.cuh"
#include "mask.cuh"

namespace fused_dropout::dropconnect {
namespace {

constexpr int kBlockThreads = 128;
constexpr int kThreadTile = 4;  // rows (and output features) of a thread's tile
// The shared memory that a block may have on sm_86, sm_89 and sm_120; sm_80 and sm_90 have more.
constexpr size_t kSharedBytes = 99 * 1024;

// Four neighbours from shared memory in 16-byte loads; `from` is aligned to 16 bytes.
FUSED_DROPOUT_DEVICE void load4(const float* from, float* to) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
FUSED_DROPOUT_DEVICE void load4(const double* from, double* to) {
#pragma unroll
  for (int k = 0; k < 4; ++k) to[k] = from[k];
}

// Element (row, col) of a matrix of any strides, 0 outside [rows, cols).
template <class T>
FUSED_DROPOUT_DEVICE Real<T> element(const MatrixView& matrix, int64_t row, int64_t col,
                                     int64_t rows, int64_t cols) {
  if (row >= rows || col >= cols) return 0;
  const T* data = static_cast<const T*>(matrix.data);
  return widen(data[row * matrix.row_stride + col * matrix.col_stride]);
}

// The 128 mask bits of (mask, out, group): drawn, or read from stored masks
// [groups][masks][outs rounded up][4 words].
FUSED_DROPOUT_DEVICE GroupBits drawn_group(const DropConnectProblem& problem, int64_t mask,
                                           int64_t out, int64_t group) {
  const int64_t row_groups = group_count(problem.in_features);
  const int64_t first = (mask * problem.out_features + out) * row_groups;
  return keep_group(problem.rule, static_cast<uint64_t>(first + group));
}
FUSED_DROPOUT_DEVICE GroupBits stored_group(const DropConnectProblem& problem, int64_t masks,
                                            int64_t mask, int64_t out, int64_t group) {
  const int64_t place = (group * masks + mask) * stored_outs(problem.out_features) + out;
  const uint4 words = *reinterpret_cast<const uint4*>(problem.mask_bits + place * kGroupWords);
  return {{words.x, words.y, words.z, words.w}};
}

// Either of them, where there are so many masks.
FUSED_DROPOUT_DEVICE GroupBits group_of_mask(const DropConnectProblem& problem, int64_t masks,
                                             int64_t mask, int64_t out, int64_t group) {
  if (problem.mask_bits != nullptr) return stored_group(problem, masks, mask, out, group);
  return drawn_group(problem, mask, out, group);
}

// The same for the mask of a row.
FUSED_DROPOUT_DEVICE GroupBits mask_group(const DropConnectProblem& problem, int64_t row,
                                          int64_t out, int64_t group) {
  const int64_t mask = row / problem.rows_per_mask;
  if (problem.mask_bits == nullptr) return drawn_group(problem, mask, out, group);
  return stored_group(problem, mask_count(problem), mask, out, group);
}

// The half-open range of `total` steps that slice `slice` of `slices` takes.
struct Steps {
  int64_t begin;
  int64_t end;
};

FUSED_DROPOUT_INLINE Steps steps_of(int64_t total, int64_t slice, int64_t slices) {
  return {total * slice / slices, total * (slice + 1) / slices};
}

}  // namespace
}  // namespace fused_dropout::dropconnect
