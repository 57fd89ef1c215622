// A packed mask that has been drawn, on elements in any order of its bits: the elements are visited
// in the order of memory, and the bits are put in that order, some thousand at a time.
//
// What is done to the elements is the caller's Work, as MaskedWork is for dropout:
//   apply(first, count, bits): elements first, first + 1, ... in the order of memory, of which
//     element first + k has bit k of `bits`;
//   apply_columns(first, tile, bits): those of a tile that begins with element `first`;
//   apply_alike(first, count, kept): all kept or all dropped; of masks with shared dimensions only.
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
constexpr int64_t kLongRow = 64;       // elements, for which a call of a kernel is worth its price
constexpr int64_t kShortPiece = 4096;  // of a row whose elements share a bit
constexpr int64_t kChunkElements = 32 * kGroupColumns;  // whose bits are joined at a time
constexpr int64_t kTileWords = 2048;  // of column bits; they stay in level-1 cache

// Dropout of the elements of one call.
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

  void apply(int64_t first, int64_t count, const uint32_t* bits) const {
    table.apply[type](map, run(first, count), bits);
  }
  void apply_alike(int64_t first, int64_t count, bool kept) const {
    table.apply_alike[type](map, run(first, count), kept);
  }
  void apply_columns(int64_t first, const dropout::ColumnBits& tile, const uint32_t* bits) const {
    table.apply_columns[type](map, run(first, 0), tile, bits);
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

// The elements of a row of the last dimension share a bit. Rows that are dropped take less time, so
// each thread gets pieces of all rows where they are long.
template <class Work>
void run_alike(const Work& work, const MaskLayout& layout, const uint32_t* bits) {
  const int64_t row = layout.dims.back().size;
  const int64_t rows = layout.numel / row;
  const int64_t pieces = std::max(
      {int64_t{1}, ceil_div(row, kGrainElements), std::min(thread_count(), row / kShortPiece)});
  const int64_t grain = std::max<int64_t>(1, kGrainElements / ceil_div(row, pieces));
  parallel_for(0, rows * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t from = row * (k / rows) / pieces;
      const int64_t to = row * (k / rows + 1) / pieces;
      const int64_t first = k % rows * row + from;
      work.apply_alike(first, to - from, bit_at(bits, bit_of_element(layout, first)));
    }
  });
}

// Applies the bits of `count` <= kChunkElements elements, which write(writer) writes one after the
// other.
template <class Work, class Write>
void apply_joined(const Work& work, int64_t first, int64_t count, Write write) {
  uint32_t chunk[kChunkElements / 32];
  BitWriter writer(chunk);
  write(writer);
  writer.finish();
  work.apply(first, count, chunk);
}

// Elements of the last dimension have consecutive bits: a chunk's are joined first.
template <class Work>
void run_rows(const Work& work, const MaskLayout& layout, const uint32_t* bits) {
  parallel_for(0, layout.numel, kGrainElements, [&](int64_t begin, int64_t end) {
    BitsOfRows order(layout, bits, begin);
    for (int64_t first = begin; first < end; first += kChunkElements) {
      const int64_t count = std::min(kChunkElements, end - first);
      apply_joined(work, first, count, [&](BitWriter& writer) { order.write(count, writer); });
    }
  });
}

// A layout as matrices, one behind the other in memory, whose columns have consecutive bits.
struct Matrices {
  size_t row_dim;  // of the layout; the dimensions behind it make a row
  int64_t rows;
  int64_t cols = 1;

  explicit Matrices(const MaskLayout& layout) : row_dim(layout.dims.size() - 1) {
    for (; layout.dims[row_dim].mask_stride != 1; --row_dim) cols *= layout.dims[row_dim].size;
    rows = layout.dims[row_dim].size;
  }

  // Goes from matrix to matrix.
  LayoutWalk matrices(const MaskLayout& layout, int64_t first) const {
    return {layout.dims.data(), row_dim, first};
  }

  // The bits of columns first, first + 1, ... first + count - 1 of the row whose first one is
  // `bit`.
  void bits_of_columns(const MaskLayout& layout, int64_t bit, int64_t first, int64_t count,
                       int64_t* out) const {
    LayoutWalk walk(&layout.dims[row_dim + 1], layout.dims.size() - row_dim - 1, first);
    for (int64_t done = 0; done < count;) {
      const int64_t n = std::min(count - done, walk.left());
      for (int64_t k = 0; k < n; ++k)
        *out++ = bit + walk.bit() + k * layout.dims.back().mask_stride;
      walk.advance(n);
      done += n;
    }
  }
};

// Matrices of few columns, such as an image in channels_last: a chunk's rows are joined first.
template <class Work>
void run_few_columns(const Work& work, const MaskLayout& layout, const Matrices& matrices,
                     const uint32_t* bits) {
  const int64_t cols = matrices.cols;
  const int64_t all_rows = layout.numel / cols;
  const int64_t chunk_rows = kChunkElements / cols / kGroupColumns * kGroupColumns;
  const int64_t chunks = ceil_div(all_rows, chunk_rows);
  int64_t first_bits[BitsOfColumns::kMost];
  matrices.bits_of_columns(layout, layout.first_bit, 0, cols, first_bits);
  const BitsOfColumns columns(bits, first_bits, static_cast<int>(cols));
  const int64_t grain = ceil_div(kGrainElements, kChunkElements);
  parallel_for(0, chunks, grain, [&](int64_t begin, int64_t end) {
    LayoutWalk walk(layout.dims.data(), matrices.row_dim + 1, begin * chunk_rows);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * chunk_rows;
      const int64_t count = std::min(chunk_rows, all_rows - first);
      apply_joined(work, first * cols, count * cols, [&](BitWriter& writer) {
        for (int64_t done = 0; done < count;) {
          const int64_t rows = std::min(count - done, walk.left());
          columns.write(walk.bit(), rows, writer);
          walk.advance(rows);
          done += rows;
        }
      });
    }
  });
}

// Matrices of few rows whose bits take turns: an image in row-major order, seen as channels_last.
template <class Work>
void run_few_rows(const Work& work, const MaskLayout& layout, const Matrices& matrices,
                  const uint32_t* bits) {
  const int64_t rows = matrices.rows;
  const int64_t cols = matrices.cols;
  const int64_t tiles = ceil_div(cols, kChunkElements);
  const int64_t count = layout.numel / (rows * cols);
  const int64_t grain =
      std::max<int64_t>(1, kGrainElements / (rows * std::min(cols, kChunkElements)));
  const BitsOfTurns turns(bits, static_cast<int>(rows));
  parallel_for(0, count * tiles, grain, [&](int64_t begin, int64_t end) {
    uint32_t chunk[BitsOfTurns::kMost][kChunkElements / 32];
    for (int64_t k = begin; k < end; ++k) {
      const int64_t matrix = k / tiles;
      const int64_t col = k % tiles * kChunkElements;
      const int64_t n = std::min(kChunkElements, cols - col);
      const int64_t bit = layout.first_bit + matrices.matrices(layout, matrix).bit() + col * rows;
      turns.write(bit, n, reinterpret_cast<uint8_t*>(chunk), sizeof chunk[0]);
      for (int64_t row = 0; row < rows; ++row) {
        work.apply((matrix * rows + row) * cols + col, n, chunk[row]);
      }
    }
  });
}

// Matrices of rows that are worth a call: channels_last of more channels, or a transposed matrix.
template <class Work>
void run_columns(const Work& work, const MaskLayout& layout, const Matrices& matrices,
                 const uint32_t* bits) {
  const int64_t col_tiles = ceil_div(matrices.cols, dropout::kMaxColumns);
  const auto first_col = [&](int64_t tile) { return matrices.cols * tile / col_tiles; };
  const int64_t tile_cols = ceil_div(matrices.cols, col_tiles);  // or one less
  const int64_t tile_rows = 32 * std::max<int64_t>(1, kTileWords / tile_cols);
  const int64_t row_tiles = ceil_div(matrices.rows, tile_rows);
  const auto first_row = [&](int64_t tile) { return matrices.rows * tile / row_tiles; };
  const int64_t count = layout.numel / (matrices.rows * matrices.cols);
  const int64_t tile_elements = std::min(tile_rows, matrices.rows) * tile_cols;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / tile_elements);
  parallel_for(0, count * row_tiles * col_tiles, grain, [&](int64_t begin, int64_t end) {
    int64_t first_bits[dropout::kMaxColumns];
    for (int64_t k = begin; k < end; ++k) {
      const int64_t row_tile = k / col_tiles % row_tiles;
      const int64_t row = first_row(row_tile);
      const int64_t col = first_col(k % col_tiles);
      const int64_t cols = first_col(k % col_tiles + 1) - col;
      const int64_t matrix = k / col_tiles / row_tiles;
      const int64_t bit = layout.first_bit + matrices.matrices(layout, matrix).bit() + row;
      matrices.bits_of_columns(layout, bit, col, cols, first_bits);
      const dropout::ColumnBits tile = {first_row(row_tile + 1) - row, cols, matrices.cols,
                                        first_bits};
      const int64_t element = (matrix * matrices.rows + row) * matrices.cols + col;
      work.apply_columns(element, tile, bits);
    }
  });
}

// Of a mask of which no bit is shared, or none by kLongRow neighbours. Element k of the mask has
// bit k of `bits`, with kSpareWords behind the last.
template <class Work>
void run_unshared(const Work& work, const MaskLayout& layout, const uint32_t* bits) {
  const MaskedDim inner = layout.dims.back();
  if (inner.mask_stride == 1 || layout.mask_numel == 1) return run_rows(work, layout, bits);
  const Matrices matrices(layout);
  if (matrices.cols < dropout::kMinColumns) return run_few_columns(work, layout, matrices, bits);
  if (matrices.rows <= BitsOfTurns::kMost && inner.size == matrices.cols &&
      inner.mask_stride == matrices.rows) {
    return run_few_rows(work, layout, matrices, bits);
  }
  run_columns(work, layout, matrices, bits);
}

// The same for any mask.
template <class Work>
void run_masked(const Work& work, const MaskLayout& layout, const uint32_t* bits) {
  const MaskedDim inner = layout.dims.back();
  if (inner.mask_stride == 0 && inner.size >= kLongRow) return run_alike(work, layout, bits);
  run_unshared(work, layout, bits);
}

}  // namespace
}  // namespace fused_dropout
