// Dropout by a packed mask that has been drawn, in any order of the bits: the elements are visited
// in the order of memory, and the bits are put in that order, some thousand at a time.
#pragma once

#include <algorithm>

#include "../ops/mask_layout.h"
#include "bits_in_memory_order.h"
#include "dispatch.h"
#include "dropout.h"
#include "mask.h"
#include "parallel.h"
#include "scratch.h"

namespace fused_dropout {
namespace {

constexpr int64_t kGrainGroups = 256;  // a task's 32768 elements take about 10 us
constexpr int64_t kGrainElements = kGrainGroups * kGroupColumns;
constexpr int64_t kLongRow = 64;      // elements, for which a call of a kernel is worth its price
constexpr int64_t kTileWords = 2048;  // of column bits; they stay in level-1 cache

// The elements of one call.
struct MaskedWork {
  const dropout::Kernels& table;
  int type;
  int64_t element_bytes;
  AffineMap map;
  dropout::Run all;

  // Elements first, first + 1, ... in the order of memory.
  dropout::Run run(int64_t first, int64_t count) const {
    const auto at = [&](const void* base) {
      return base == nullptr ? nullptr : static_cast<const char*>(base) + first * element_bytes;
    };
    return {at(all.in), at(all.residual), static_cast<char*>(all.out) + first * element_bytes,
            count};
  }
};

// The mask bit of an element, counted in the order of memory.
int64_t bit_of_element(const MaskLayout& layout, int64_t element) {
  int64_t bit = layout.first_bit;
  for (size_t d = layout.dims.size(); d-- > 0; element /= layout.dims[d].size) {
    bit += element % layout.dims[d].size * layout.dims[d].mask_stride;
  }
  return bit;
}

// The whole mask, packed.
inline Scratch<uint32_t> draw_all_bits(const MaskRule& rule, int64_t mask_numel) {
  const int64_t groups = group_count(mask_numel);
  Scratch<uint32_t> bits(static_cast<size_t>(groups * kGroupWords + dropout::kSpareWords));
  uint32_t* const out = bits.get();
  parallel_for(0, groups, kGrainGroups, [&](int64_t begin, int64_t end) {
    kernels<mask::Kernels>().draw_groups(rule, static_cast<uint64_t>(begin), 1, end - begin,
                                         out + begin * kGroupWords);
  });
  return bits;
}

// The elements of a row of the last dimension share a bit.
void run_alike(const MaskedWork& work, const MaskLayout& layout, const uint32_t* bits) {
  const auto apply = work.table.apply_alike[work.type];
  const int64_t row = layout.dims.back().size;
  const int64_t pieces = ceil_div(row, kGrainElements);
  const int64_t piece = ceil_div(row, pieces);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / row);
  parallel_for(0, layout.numel / row * pieces, grain, [&](int64_t begin, int64_t end) {
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
void run_gathered(const MaskedWork& work, const MaskLayout& layout, const uint32_t* bits) {
  constexpr int64_t kChunk = 32 * kGroupColumns;
  parallel_for(0, layout.numel, kGrainElements, [&](int64_t begin, int64_t end) {
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

  explicit Matrices(const MaskLayout& layout) {
    cols = row_stride = layout.dims.back().size;
    // The innermost dimension, in logical order, of those that do not share their bits.
    for (row_dim = layout.dims.size() - 2; layout.dims[row_dim].mask_stride != 1; --row_dim) {
      row_stride *= layout.dims[row_dim].size;
    }
    rows = layout.dims[row_dim].size;
  }

  // The first element of matrix `number`, counted in the order of memory.
  int64_t first_element(const MaskLayout& layout, int64_t number) const {
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
void run_columns(const MaskedWork& work, const MaskLayout& layout, const uint32_t* bits) {
  const Matrices matrices(layout);
  const auto apply = work.table.apply_columns[work.type];
  const int64_t col_tiles = ceil_div(matrices.cols, dropout::kMaxColumnWords);
  const auto first_col = [&](int64_t tile) { return matrices.cols * tile / col_tiles; };
  const int64_t tile_cols = ceil_div(matrices.cols, col_tiles);  // or one less
  const int64_t tile_rows = 32 * std::max<int64_t>(1, kTileWords / tile_cols);
  const int64_t row_tiles = ceil_div(matrices.rows, tile_rows);
  const int64_t count = layout.numel / (matrices.rows * matrices.cols);
  const int64_t tile_elements = std::min(tile_rows, matrices.rows) * tile_cols;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / tile_elements);
  parallel_for(0, count * row_tiles * col_tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t row = k / col_tiles % row_tiles * tile_rows;
      const int64_t col = first_col(k % col_tiles);
      const int64_t element = matrices.first_element(layout, k / col_tiles / row_tiles) +
                              row * matrices.row_stride + col;
      const dropout::ColumnBits tile = {
          std::min(tile_rows, matrices.rows - row), first_col(k % col_tiles + 1) - col,
          matrices.row_stride, bit_of_element(layout, element), layout.dims.back().mask_stride};
      apply(work.map, work.run(element, 0), tile, bits);
    }
  });
}

// Element k of the mask has bit k of `bits`, with kSpareWords behind the last.
void run_masked(const MaskedWork& work, const MaskLayout& layout, const uint32_t* bits) {
  const MaskedDim inner = layout.dims.back();
  if (inner.mask_stride == 0 && inner.size >= kLongRow) return run_alike(work, layout, bits);
  if (inner.mask_stride > 1 && inner.size >= dropout::kMinColumns)
    return run_columns(work, layout, bits);
  run_gathered(work, layout, bits);
}

}  // namespace
}  // namespace fused_dropout
