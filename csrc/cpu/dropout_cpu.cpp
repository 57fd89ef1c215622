// IMPL(CPU) of dropout: checks, cutting the work, at::parallel_for.
//
// Where the elements lie in the order of their mask bits, each thread draws the bits of its stretch
// just before it uses them. Everything else (shared dimensions, channels_last, transposed inputs)
// draws the packed mask first; its bits are then put in the order of memory, some thousand at a
// time.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../dropout_layout.h"
#include "bits_in_memory_order.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "rng_cpu.h"

namespace fused_dropout {
namespace {

using at::Tensor;

constexpr int64_t kGrainGroups = 256;  // a task's 32768 elements take about 10 us
constexpr int64_t kGrainElements = kGrainGroups * kGroupColumns;
constexpr int64_t kLongRow = 64;      // elements, for which a call of a kernel is worth its price
constexpr int64_t kTileWords = 2048;  // of column bits; they stay in level-1 cache

// The elements of one call.
struct Work {
  const DropoutKernels& table;
  int type;
  int64_t element_bytes;
  AffineMap map;
  DropoutRun all;

  // Elements first, first + 1, ... in the order of memory.
  DropoutRun run(int64_t first, int64_t count) const {
    const auto at = [&](const void* base) {
      return base == nullptr ? nullptr : static_cast<const char*>(base) + first * element_bytes;
    };
    return {at(all.in), at(all.residual), static_cast<char*>(all.out) + first * element_bytes,
            count};
  }
};

void run_linear(const Work& work, const MaskRule& rule) {
  const auto apply = work.table.draw_and_apply[work.type];
  at::parallel_for(0, group_count(work.all.count), kGrainGroups, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kGroupColumns;
    const int64_t count = std::min(work.all.count, end * kGroupColumns) - first;
    apply(rule, work.map, work.run(first, count), static_cast<uint64_t>(begin));
  });
}

// The mask bit of an element, counted in the order of memory.
int64_t bit_of_element(const DropoutLayout& layout, int64_t element) {
  int64_t bit = 0;
  for (size_t d = layout.dims.size(); d-- > 0; element /= layout.dims[d].size) {
    bit += element % layout.dims[d].size * layout.dims[d].mask_stride;
  }
  return bit;
}

// The whole mask, packed.
Tensor draw_all_bits(const MaskRule& rule, int64_t mask_numel) {
  const int64_t groups = group_count(mask_numel);
  Tensor bits = at::empty({groups * kGroupWords + kSpareWords}, at::kInt);
  uint32_t* out = static_cast<uint32_t*>(bits.mutable_data_ptr());
  at::parallel_for(0, groups, kGrainGroups, [&](int64_t begin, int64_t end) {
    kernels().mask.draw_groups(rule, static_cast<uint64_t>(begin), 1, end - begin,
                               out + begin * kGroupWords);
  });
  return bits;
}

// The elements of a row of the last dimension share a bit.
void run_alike(const Work& work, const DropoutLayout& layout, const uint32_t* bits) {
  const auto apply = work.table.apply_alike[work.type];
  const int64_t row = layout.dims.back().size;
  const int64_t pieces = ceil_div(row, kGrainElements);
  const int64_t piece = ceil_div(row, pieces);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / row);
  at::parallel_for(0, layout.numel / row * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k / pieces * row + k % pieces * piece;
      const int64_t count = std::min(piece, row - k % pieces * piece);
      if (count > 0) {
        apply(work.map, work.run(first, count), bit_at(bits, bit_of_element(layout, first)));
      }
    }
  });
}

// Any layout: a chunk's bits are put in the order of memory first.
void run_gathered(const Work& work, const DropoutLayout& layout, const uint32_t* bits) {
  constexpr int64_t kChunk = 32 * kGroupColumns;
  at::parallel_for(0, layout.numel, kGrainElements, [&](int64_t begin, int64_t end) {
    BitsInMemoryOrder order(layout, bits, begin);
    for (int64_t first = begin; first < end; first += kChunk) {
      uint32_t chunk[kChunk / 32];
      const int64_t count = std::min(kChunk, end - first);
      BitWriter writer(chunk);
      order.write(count, writer);
      writer.finish();
      work.table.apply[work.type](work.map, work.run(first, count), chunk);
    }
  });
}

// A layout as matrices, whose rows are its last dimension and whose columns have consecutive bits.
struct Matrices {
  int64_t rows;
  int64_t cols;
  int64_t row_stride;  // in memory, counted in elements
  size_t row_dim;      // of the layout

  explicit Matrices(const DropoutLayout& layout) {
    cols = row_stride = layout.dims.back().size;
    // The innermost dimension, in logical order, of those that do not share their bits.
    for (row_dim = layout.dims.size() - 2; layout.dims[row_dim].mask_stride != 1; --row_dim) {
      row_stride *= layout.dims[row_dim].size;
    }
    rows = layout.dims[row_dim].size;
  }

  // The first element of matrix `number`, counted in the order of memory.
  int64_t first_element(const DropoutLayout& layout, int64_t number) const {
    int64_t element = 0;
    int64_t stride = cols;
    for (size_t d = layout.dims.size() - 1; d-- > 0; stride *= layout.dims[d].size) {
      if (d == row_dim) continue;
      element += number % layout.dims[d].size * stride;
      number /= layout.dims[d].size;
    }
    return element;
  }
};

// Elements of the last dimension have bits far apart, those of a dimension before it consecutive
// ones: channels_last, or a transposed matrix.
void run_columns(const Work& work, const DropoutLayout& layout, const uint32_t* bits) {
  const Matrices matrices(layout);
  const auto apply = work.table.apply_columns[work.type];
  const int64_t col_tiles = ceil_div(matrices.cols, kMaxColumnWords);
  const auto first_col = [&](int64_t tile) { return matrices.cols * tile / col_tiles; };
  const int64_t tile_cols = ceil_div(matrices.cols, col_tiles);  // or one less
  const int64_t tile_rows = 32 * std::max<int64_t>(1, kTileWords / tile_cols);
  const int64_t row_tiles = ceil_div(matrices.rows, tile_rows);
  const int64_t count = layout.numel / (matrices.rows * matrices.cols);
  const int64_t tile_elements = std::min(tile_rows, matrices.rows) * tile_cols;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / tile_elements);
  at::parallel_for(0, count * row_tiles * col_tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t row = k / col_tiles % row_tiles * tile_rows;
      const int64_t col = first_col(k % col_tiles);
      const int64_t element = matrices.first_element(layout, k / col_tiles / row_tiles) +
                              row * matrices.row_stride + col;
      const ColumnBits tile = {std::min(tile_rows, matrices.rows - row),
                               first_col(k % col_tiles + 1) - col, matrices.row_stride,
                               bit_of_element(layout, element), layout.dims.back().mask_stride};
      apply(work.map, work.run(element, 0), tile, bits);
    }
  });
}

void run_dropout(const Work& work, const DropoutLayout& layout, const MaskRule& rule) {
  if (layout.is_linear()) return run_linear(work, rule);
  const Tensor all_bits = draw_all_bits(rule, layout.mask_numel);
  const uint32_t* const bits = static_cast<const uint32_t*>(all_bits.const_data_ptr());
  const MaskedDim inner = layout.dims.back();
  if (inner.mask_stride == 0 && inner.size >= kLongRow) return run_alike(work, layout, bits);
  if (inner.mask_stride > 1 && inner.size >= kMinColumns) return run_columns(work, layout, bits);
  run_gathered(work, layout, bits);
}

// `out` has the strides of `input`, which has no gaps.
void dropout_into(const Tensor& out, const Tensor& input, const std::optional<Tensor>& residual,
                  const Tensor& rng_state, double p, at::IntArrayRef shared_dims,
                  const AffineMap& map) {
  if (input.numel() == 0) return;
  const DropoutLayout layout = dropout_layout(input, shared_dims);
  Tensor addend;
  if (residual.has_value()) addend = like_in_memory(*residual, input);
  const Work work{kernels().dropout,
                  static_cast<int>(kernel_type(input)),
                  input.element_size(),
                  map,
                  {input.const_data_ptr(), addend.defined() ? addend.const_data_ptr() : nullptr,
                   out.mutable_data_ptr(), input.numel()}};
  run_dropout(work, layout, rule_from_cpu_state(rng_state, p, kStreamMask, kDefaultDigits));
}

Tensor dropout_cpu(const Tensor& input, const std::optional<Tensor>& residual,
                   const Tensor& rng_state, double p, at::IntArrayRef shared_dims, double scale,
                   double shift, double fill) {
  check_dropout_arguments(input, residual, p);
  const Tensor dense = without_gaps(input);
  Tensor out = dense.is_same(input) ? fresh_output(input) : dense;  // a copy is ours to change
  dropout_into(out, dense, residual, rng_state, p, shared_dims, {scale, shift, fill});
  return out;
}

std::tuple<Tensor, Tensor> drawn_dropout_cpu(const Tensor& input,
                                             const std::optional<Tensor>& residual,
                                             const std::optional<at::Generator>& generator,
                                             double p, at::IntArrayRef shared_dims, double scale,
                                             double shift, double fill) {
  const Tensor rng_state = draw_cpu_state(generator);
  return {dropout_cpu(input, residual, rng_state, p, shared_dims, scale, shift, fill), rng_state};
}

void dropout_cpu_(const Tensor& input, const std::optional<Tensor>& residual,
                  const Tensor& rng_state, double p, at::IntArrayRef shared_dims, double scale,
                  double shift, double fill) {
  check_dropout_arguments(input, residual, p);
  at::assert_no_internal_overlap(input);
  const Tensor dense = without_gaps(input);
  dropout_into(dense, dense, residual, rng_state, p, shared_dims, {scale, shift, fill});
  if (!dense.is_same(input)) input.copy_(dense);
}

Tensor drawn_dropout_cpu_(const Tensor& input, const std::optional<Tensor>& residual,
                          const std::optional<at::Generator>& generator, double p,
                          at::IntArrayRef shared_dims, double scale, double shift, double fill) {
  const Tensor rng_state = draw_cpu_state(generator);
  dropout_cpu_(input, residual, rng_state, p, shared_dims, scale, shift, fill);
  return rng_state;
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("dropout", dropout_cpu);
  m.impl("dropout.generator", drawn_dropout_cpu);
  m.impl("dropout_", dropout_cpu_);
  m.impl("dropout_.generator", drawn_dropout_cpu_);
}

}  // namespace fused_dropout
