// Operands as the DropConnect kernels take them: floats or doubles in rows of neighbours. Those
// that are not so already, of 16 bits or of odd strides, are copied first, all of a pass in one
// launch. That takes the time of their bytes, which are those of a mask for every 32nd row or
// output feature.
#pragma once

#include "dropconnect_operands.cuh"

namespace fused_dropout::dropconnect {
namespace {

// How the elements of an operand must lie: each row in neighbours, for copies of single elements,
// or in whole runs of 16 bytes.
enum class Rows { kNeighbours, kRuns };

template <class T>
bool is_dense(const MatrixView& matrix, Rows rows) {
  if (sizeof(T) != sizeof(Real<T>) || matrix.col_stride != 1) return false;
  return rows == Rows::kNeighbours ||
         (is_aligned(matrix.data, 16) && matrix.row_stride * sizeof(T) % 16 == 0);
}

// From one row of a copy to the next, in elements.
template <class R>
int64_t dense_stride(int64_t cols) {
  return ceil_div(cols, kRun<R>) * kRun<R>;
}

struct DenseCopy {
  MatrixView from;
  int64_t rows, cols;
  int64_t blocks;
  void* to;  // null: nothing to copy
};

constexpr int kDenseCopies = 3;
constexpr int kDenseTile = 32;  // rows and columns of a block's tile
constexpr int kDenseRows = 8;   // that it copies at a time

struct DenseCopies {
  DenseCopy copies[kDenseCopies];
};

// A block reads its tile along the neighbours in memory and writes it along rows.
template <class T>
__global__ void __launch_bounds__(kDenseTile* kDenseRows) dense_kernel(DenseCopies all) {
  using R = Real<T>;
  FUSED_DROPOUT_SHARED(R, tile, [kDenseTile][kDenseTile + 1]);
  int64_t block = blockIdx.x;
  int k = 0;
  for (; block >= all.copies[k].blocks; ++k) block -= all.copies[k].blocks;
  const DenseCopy& copy = all.copies[k];
  const int64_t col_tiles = ceil_div(copy.cols, kDenseTile);
  const int64_t row = block / col_tiles * kDenseTile, col = block % col_tiles * kDenseTile;
  const int x = threadIdx.x, y = threadIdx.y;
  const bool along_rows = copy.from.row_stride < copy.from.col_stride;
#pragma unroll
  for (int i = 0; i < kDenseTile; i += kDenseRows) {
    const int r = along_rows ? x : y + i, c = along_rows ? y + i : x;
    tile[r][c] = element<T>(copy.from, row + r, col + c, copy.rows, copy.cols);
  }
  __syncthreads();
  const int64_t stride = ceil_div(copy.cols, kRun<R>) * kRun<R>;
#pragma unroll
  for (int i = 0; i < kDenseTile; i += kDenseRows) {
    const int r = y + i;
    if (row + r < copy.rows && col + x < copy.cols) {
      static_cast<R*>(copy.to)[(row + r) * stride + col + x] = tile[r][x];
    }
  }
}

// The operands of a pass. add() takes a matrix and says where it will lie, launch() copies those
// that must be copied to `memory`, of elements() Real<T>s, which is aligned to 16 bytes.
template <class T>
class DenseOperands {
 public:
  void add(const MatrixView& matrix, int64_t rows, int64_t cols, Rows needed) {
    using R = Real<T>;
    const bool copies = !is_dense<T>(matrix, needed) && rows * cols > 0;
    const int64_t stride = copies ? dense_stride<R>(cols) : matrix.row_stride;
    DenseCopy& copy = copies_.copies[count_];
    copy = {matrix, rows, cols, 0, nullptr};
    if (copies) {
      copy.blocks = ceil_div(rows, kDenseTile) * ceil_div(cols, kDenseTile);
      offsets_[count_] = elements_;
      elements_ += rows * stride;
    }
    operands_[count_++] = {static_cast<const unsigned char*>(matrix.data),
                           stride * static_cast<int64_t>(sizeof(R)), rows, cols};
  }

  int64_t elements() const { return elements_; }
  const Operand& operator[](int k) const { return operands_[k]; }

  cudaError_t launch(Real<T>* memory, cudaStream_t stream) {
    int64_t blocks = 0;
    for (int k = 0; k < count_; ++k) {
      DenseCopy& copy = copies_.copies[k];
      if (copy.blocks == 0) continue;
      copy.to = memory + offsets_[k];
      operands_[k].data = static_cast<const unsigned char*>(copy.to);
      blocks += copy.blocks;
    }
    if (blocks == 0) return cudaSuccess;
    return launch_kernel<dense_kernel<T>>(dim3(static_cast<unsigned>(blocks)),
                                          dim3(kDenseTile, kDenseRows), 0, stream, copies_);
  }

 private:
  DenseCopies copies_{};
  Operand operands_[kDenseCopies] = {};
  int64_t offsets_[kDenseCopies] = {};
  int count_ = 0;
  int64_t elements_ = 0;
};

}  // namespace
}  // namespace fused_dropout::dropconnect
