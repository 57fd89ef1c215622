// Dropout by a packed mask that has been drawn, in any order of the bits: the elements are visited
// in the order of memory, and the bits are read, or first put, in that order.
#pragma once

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "../dropout_layout.h"
#include "bit_runs.h"
#include "dispatch.h"

namespace fused_dropout {

constexpr int64_t kGrainGroups = 256;  // a task's 32768 elements take about 10 us

// The elements of one call.
struct MaskedWork {
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

// A whole packed mask, with the spare bytes that the kernels may read.
inline at::Tensor draw_all_bits(const MaskRule& rule, int64_t mask_numel) {
  const int64_t groups = group_count(mask_numel);
  at::Tensor bits = at::empty({(groups + 1) * kGroupWords}, at::kInt);
  uint32_t* out = static_cast<uint32_t*>(bits.mutable_data_ptr());
  at::parallel_for(0, groups, kGrainGroups, [&](int64_t begin, int64_t end) {
    kernels().mask.draw_groups(rule, static_cast<uint64_t>(begin), 1, end - begin,
                               out + begin * kGroupWords);
  });
  return bits;
}

constexpr int64_t kShortStretch = 8 * kGroupColumns;
constexpr int64_t kTileRows = 64;  // rows that transpose_bits makes at a time

inline bool bit_at(const uint32_t* bits, int64_t k) { return bits[k / 32] >> (k % 32) & 1; }

// The first mask bit of stretch `index`, counted over all dimensions but the last `inner`.
inline int64_t first_bit_of(const DropoutLayout& layout, int64_t index, size_t inner) {
  int64_t bit = layout.first_bit;
  for (size_t d = layout.dims.size() - inner; d-- > 0;) {
    bit += index % layout.dims[d].size * layout.dims[d].mask_stride;
    index /= layout.dims[d].size;
  }
  return bit;
}

// The bits of a stretch's elements, which share one or have consecutive ones, to `out` from bit
// `to` on.
inline void put_stretch(const uint32_t* bits, int64_t first, MaskedDim stretch, uint64_t* out,
                        int64_t to) {
  const uint64_t shared = bit_at(bits, first) ? ~uint64_t{0} : 0;
  for (int64_t done = 0; done < stretch.size; done += 64) {
    const int64_t left = stretch.size - done;
    const uint64_t exist = left < 64 ? (uint64_t{1} << left) - 1 : ~uint64_t{0};
    put_bits(out, to + done,
             exist & (stretch.mask_stride == 0 ? shared : bits_from(bits, first + done)));
  }
}

// Stretches that are shorter than a few blocks: their bits are put next to each other, since a
// block that is cut short costs as much as a whole one.
inline void run_short_stretches(const MaskedWork& work, const DropoutLayout& layout,
                                const uint32_t* bits) {
  const MaskedDim inner = layout.dims.back();
  const int64_t stretches = layout.numel / inner.size;
  const int64_t tile = ceil_div(kGrainGroups * kGroupColumns, inner.size);
  const int64_t words = ceil_div(tile * inner.size, 64) + 2;  // the kernels read 16 bytes more
  at::parallel_for(0, ceil_div(stretches, tile), 1, [&](int64_t begin, int64_t end) {
    at::Tensor scratch = at::empty({words}, at::kLong);
    uint64_t* const tile_bits = static_cast<uint64_t*>(scratch.mutable_data_ptr());
    for (int64_t k = begin; k < end; ++k) {
      std::fill_n(tile_bits, words, 0);
      const int64_t first = k * tile;
      const int64_t count = std::min(tile, stretches - first);
      for (int64_t s = 0; s < count; ++s) {
        put_stretch(bits, first_bit_of(layout, first + s, 1), inner, tile_bits, s * inner.size);
      }
      work.table.apply[work.type](work.map, work.run(first * inner.size, count * inner.size),
                                  static_cast<const uint32_t*>(scratch.const_data_ptr()), 0);
    }
  });
}

// Stretches whose elements share a bit, or have consecutive ones.
inline void run_stretches(const MaskedWork& work, const DropoutLayout& layout,
                          const uint32_t* bits) {
  const MaskedDim inner = layout.dims.back();
  const int64_t stretches = layout.numel / inner.size;
  const int64_t pieces = ceil_div(inner.size, kGrainGroups * kGroupColumns);
  const int64_t piece = ceil_div(ceil_div(inner.size, pieces), kGroupColumns) * kGroupColumns;
  const int64_t grain = std::max<int64_t>(1, kGrainGroups * kGroupColumns / inner.size);
  at::parallel_for(0, stretches * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t stretch = k / pieces;
      const int64_t first = k % pieces * piece;
      const int64_t count = std::min(piece, inner.size - first);
      if (count <= 0) continue;
      const DropoutRun run = work.run(stretch * inner.size + first, count);
      const int64_t bit = first_bit_of(layout, stretch, 1);
      if (inner.mask_stride == 0) {
        work.table.apply_alike[work.type](work.map, run, bit_at(bits, bit));
      } else {
        work.table.apply[work.type](work.map, run, bits, bit + first);
      }
    }
  });
}

// The last dimension's bits are far apart, those of the one before it consecutive: channels_last,
// or a transposed matrix.
inline void run_transposed(const MaskedWork& work, const DropoutLayout& layout,
                           const uint32_t* bits) {
  const MaskedDim rows = layout.dims[layout.dims.size() - 2];
  const MaskedDim cols = layout.dims.back();
  const int64_t tiles = ceil_div(rows.size, kTileRows);
  const int64_t planes = layout.numel / (rows.size * cols.size);
  const int64_t tile_groups = group_count(kTileRows * cols.size);
  const int64_t grain = std::max<int64_t>(1, kGrainGroups / tile_groups);
  at::parallel_for(0, planes * tiles, grain, [&](int64_t begin, int64_t end) {
    at::Tensor scratch = at::empty({(tile_groups + 1) * kGroupWords}, at::kInt);
    uint32_t* const tile_bits = static_cast<uint32_t*>(scratch.mutable_data_ptr());
    for (int64_t k = begin; k < end; ++k) {
      const int64_t plane = k / tiles;
      const int64_t row = k % tiles * kTileRows;
      const int64_t count = std::min(kTileRows, rows.size - row);
      work.table.transpose_bits(bits, first_bit_of(layout, plane, 2) + row, cols.mask_stride, count,
                                cols.size, tile_bits);
      const int64_t element = (plane * rows.size + row) * cols.size;
      work.table.apply[work.type](work.map, work.run(element, count * cols.size), tile_bits, 0);
    }
  });
}

// What remains, such as a tensor with three dimensions in reverse: the bits are put in the order of
// memory one by one.
inline void run_gathered(const MaskedWork& work, const DropoutLayout& layout,
                         const uint32_t* bits) {
  const int64_t groups = group_count(layout.numel);
  at::parallel_for(0, groups, kGrainGroups, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      uint32_t words[2 * kGroupWords] = {};
      const int64_t first = g * kGroupColumns;
      const int64_t count = std::min<int64_t>(kGroupColumns, layout.numel - first);
      for (int64_t k = 0; k < count; ++k) {
        const bool kept = bit_at(bits, first_bit_of(layout, first + k, 0));
        words[k / 32] |= static_cast<uint32_t>(kept) << (k % 32);
      }
      work.table.apply[work.type](work.map, work.run(first, count), words, 0);
    }
  });
}

// Element k of the mask has bit k of `bits`.
inline void run_masked(const MaskedWork& work, const DropoutLayout& layout, const uint32_t* bits) {
  const size_t count = layout.dims.size();
  const MaskedDim inner = layout.dims.back();
  if (inner.mask_stride <= 1 && inner.size < kShortStretch && count > 1) {
    return run_short_stretches(work, layout, bits);
  }
  if (inner.mask_stride <= 1) return run_stretches(work, layout, bits);
  if (count > 1 && layout.dims[count - 2].mask_stride == 1) {
    return run_transposed(work, layout, bits);
  }
  run_gathered(work, layout, bits);
}

}  // namespace fused_dropout
