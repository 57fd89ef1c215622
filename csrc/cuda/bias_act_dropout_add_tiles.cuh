// How the transformer epilogue cuts a tensor: matrix, tiles, slices, and the accesses of a lane.
//
// The elements are looked at as a matrix whose rows are whole rows of the tensor, joined until they
// are whole mask groups too: lcm(features, 128) columns. A tile is 128 or 256 of them, and a warp
// walks down some rows of its tile, a slice. So a lane stays in its columns, and its accesses are
// of 16 bytes.
//
// Where a matrix has so few rows that the sums of its columns would be many (features that are odd
// and large, say), and sums are wanted, rows are those of the tensor. Then tiles begin anywhere in
// a group, so that they touch two, and lanes access one element at a time.
#pragma once

#include "divisor.cuh"
#include "raw_elements.cuh"

namespace fused_dropout::bias_act_dropout_add {

struct Grid {
  Divisor features;      // the column of element k is k % features
  int64_t columns;       // of the matrix
  int64_t whole_rows;    // of the matrix
  int64_t rest;          // elements of the row behind them, 0 where there is none
  Divisor tiles;         // of each row
  int tile_groups;       // of the mask, that a row of a tile touches: 1 or 2
  int slice_shift;       // 1 << slice_shift warps of a block take neighbouring slices of a tile
  int64_t whole_slices;  // of whole rows; what is behind those is a slice too
  int64_t item_rows;     // rows of a slice
  int64_t slice_groups;  // of 1 << slice_shift slices each, the last of which may lack some
  bool by_digits;        // 16 lanes share the digits of a group
  bool vectors;          // accesses are of 16 bytes
};

namespace {

FUSED_DROPOUT_INLINE int slice_warps(const Grid& grid) { return 1 << grid.slice_shift; }

FUSED_DROPOUT_INLINE int64_t rows_of(const Grid& grid) {
  return grid.whole_rows + (grid.rest > 0 ? 1 : 0);
}

// Each a slice of a tile, and a warp's work.
FUSED_DROPOUT_INLINE int64_t items_of(const Grid& grid) {
  return grid.tiles.value * grid.slice_groups << grid.slice_shift;
}

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int64_t kFreeColumns = 4096;  // of the matrix, where no column matters
// Blocks that a multiprocessor holds: more would leave so few registers that some are spilled.
template <class T>
constexpr int kBlocks = sizeof(T) < 8 ? 6 : 4;
constexpr int64_t kMaxItemRows = 64;     // without sums: further rows would save little
constexpr int64_t kMaxSumRows = 512;     // that a lane adds up one after another
constexpr int64_t kFewSumRows = 8;       // that a lane adds up where a block can add up all rows
constexpr int64_t kElementsPerSum = 16;  // at least, else the rows are not joined

// Neighbouring elements of a lane, or every 32nd one where 16-byte accesses do not fit.
template <class T, bool kVectors>
constexpr int kPerLane = kVectors ? kVector<T> : 4;
template <class T, bool kVectors>
constexpr int kTileColumns = kWarpLanes * kPerLane<T, kVectors>;
// Groups whose bits a row of a tile may need, and rows that a warp draws at a time.
template <class T, bool kVectors>
constexpr int kRowGroups = kVectors ? kTileColumns<T, kVectors> / kGroupColumns : 2;
template <class T, bool kVectors>
constexpr int kDrawnRows = kWarpLanes / kRowGroups<T, kVectors>;

// Element i of a lane, counted from the start of its tile.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE int tile_column(int lane, int i) {
  return kVectors ? lane * kPerLane<T, kVectors> + i : i * kWarpLanes + lane;
}

// A lane's elements of a row.
template <class T, bool kVectors>
using LaneElements = RawElements<T, kPerLane<T, kVectors>>;

// Of the row that starts at `tile` `left` elements exist; the others read as 0.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE LaneElements<T, kVectors> load_lane(const T* tile, int lane, int left) {
  constexpr int kCount = kPerLane<T, kVectors>;
  LaneElements<T, kVectors> loaded = {};
  if constexpr (kVectors) {
    const int own = left - lane * kCount;
    if (own >= kCount) return load_raw<T, kCount, kCount>(tile + lane * kCount);
    if (own <= 0) return loaded;
  }
  T element[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int column = tile_column<T, kVectors>(lane, i);
    element[i] = column < left ? tile[column] : T{};
  }
  loaded.set(element);
  return loaded;
}

template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void store_lane(const Real<T>* x, int lane, int left, T* tile) {
  constexpr int kCount = kPerLane<T, kVectors>;
  if constexpr (kVectors) {
    const int own = left - lane * kCount;
    if (own >= kCount) return store_neighbours<T, kCount>(x, tile + lane * kCount);
    if (own <= 0) return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int column = tile_column<T, kVectors>(lane, i);
    if (column < left) narrow(x[i], tile + column);
  }
}

// Which of a lane's elements are among the first `left` of the row, lowest bit first.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE uint32_t existing(int lane, int left) {
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kPerLane<T, kVectors>; ++i) {
    bits |= (tile_column<T, kVectors>(lane, i) < left ? 1u : 0u) << i;
  }
  return bits;
}

// Where in its group an element stands.
FUSED_DROPOUT_DEVICE int group_shift(int64_t element) {
  return static_cast<int>(element & (kGroupColumns - 1));
}

// The keep bits of a lane's elements, lowest first, from those of the row's groups. The first
// element of the tile is element `shift` of the first group.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE uint32_t lane_bits(const GroupBits* row, int shift, int lane) {
  const uint32_t* const words = row->word;  // and those of the groups behind it
  if constexpr (kVectors) {
    const int column = tile_column<T, kVectors>(lane, 0);
    return words[column / 32] >> column % 32;
  } else {
    const int column = shift + lane;
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      bits |= (words[column / 32 + i] >> column % 32 & 1) << i;
    }
    return bits;
  }
}

// Where a warp works: a tile of columns in a slice of rows.
struct EpiloguePlace {
  int64_t slice_group;
  int64_t slice;
  int64_t first_column;
};

// x, of which a later call knows nothing: what follows is worked out again there, in place of
// keeping registers for it.
FUSED_DROPOUT_DEVICE uint32_t again(uint32_t x) {
  hold(x);
  return x;
}

// The calling warp's, of an item of its own.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE EpiloguePlace place_of_warp(const Grid& grid) {
  EpiloguePlace place;
  const int64_t k = int64_t{again(blockIdx.x)} * kWarps + again(threadIdx.x) / kWarpLanes;
  const int64_t group_tile = k >> grid.slice_shift;
  place.slice_group = quotient(group_tile, grid.tiles);
  place.slice = (place.slice_group << grid.slice_shift) + (k & (slice_warps(grid) - 1));
  place.first_column =
      (group_tile - place.slice_group * grid.tiles.value) * kTileColumns<T, kVectors>;
  return place;
}

// What is left of a warp's work: rows of which `left` elements are in the tile.
struct RowWalk {
  int64_t element;  // the first one
  int rows;
  int left;
};

// The calling warp's.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE RowWalk walk_of_warp(const Grid& grid) {
  const EpiloguePlace place = place_of_warp<T, kVectors>(grid);
  const bool whole = place.slice < grid.whole_slices;
  const int64_t row = whole ? place.slice * grid.item_rows : grid.whole_rows;
  const int64_t in_row = (whole ? grid.columns : grid.rest) - place.first_column;
  const int64_t behind = whole ? grid.whole_rows - row : place.slice == grid.whole_slices;
  const int64_t rows = behind < grid.item_rows ? behind : grid.item_rows;
  RowWalk walk;
  walk.element = row * grid.columns + place.first_column;
  walk.rows = in_row > 0 ? static_cast<int>(rows) : 0;
  walk.left =
      static_cast<int>(in_row < kTileColumns<T, kVectors> ? in_row : kTileColumns<T, kVectors>);
  return walk;
}

// What a warp keeps in shared memory, so that drawing has the registers: the bits of the rows that
// it has drawn, and of each column the bias and the sum.
template <class T, bool kVectors>
struct alignas(16) WarpMemory {
  Real<T> bias[kTileColumns<T, kVectors>];
  Real<T> sums[kTileColumns<T, kVectors>];
  GroupBits bits[kDrawnRows<T, kVectors>][kRowGroups<T, kVectors>];
};

// The biases of a lane's columns, 0 without a bias, and sums of nothing.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void start_columns(const T* bias, const Divisor& features,
                                        int64_t first_column, int lane,
                                        WarpMemory<T, kVectors>& memory) {
  int64_t column = first_column + tile_column<T, kVectors>(lane, 0);
#pragma unroll
  for (int i = 0; i < kPerLane<T, kVectors>; ++i) {
    Real<T> value = 0;
    if (bias != nullptr) {
      // Neighbours need no division, which would take longer than their loads.
      if (i == 0 || !kVectors) column -= quotient(column, features) * features.value;
      if (column == features.value) column = 0;
      value = widen(bias[column]);
    }
    memory.bias[tile_column<T, kVectors>(lane, i)] = value;
    memory.sums[tile_column<T, kVectors>(lane, i)] = 0;
    column += kVectors ? 1 : kWarpLanes;
  }
}

// The warp's bits of `rows` rows, of which the first starts at `element`.
template <class T, bool kVectors>
FUSED_DROPOUT_DEVICE void draw_rows(const MaskRule& rule, const Grid& grid, int64_t element,
                                    int rows, int lane, WarpMemory<T, kVectors>& memory) {
  const PhiloxKeys<uint32_t> keys = held_keys(rule);
  // The group of that number, and where its bits go.
  const int groups = kVectors ? kRowGroups<T, kVectors> : grid.tile_groups;
  const auto group_at = [&](int number) {
    const int64_t start = element + number / groups * grid.columns;
    return static_cast<uint64_t>(start / kGroupColumns + number % groups);
  };
  const auto put = [&](int number, const GroupBits& bits) {
    memory.bits[number / groups][number % groups] = bits;
  };
  const int wanted = rows * groups;
  if (!grid.by_digits) {
    if (lane < wanted) put(lane, keep_group(rule, keys, group_at(lane)));
    return;
  }
  for (int k = 0; k < wanted; k += kWarpLanes / kDigitLanes) {
    const int mine = k + lane / kDigitLanes;
    const GroupBits kept = keep_group_by_lanes(rule, keys, group_at(mine), lane % kDigitLanes);
    if (lane % kDigitLanes == 0 && mine < wanted) put(mine, kept);
  }
}

// Draws the rows' bits, as many rows at a time as fit, and calls f() for each time, which moves the
// walk on by kDrawnRows or to its end.
template <class T, bool kVectors, class F>
FUSED_DROPOUT_DEVICE void for_drawn_rows(const MaskRule& rule, const RngSource& rng,
                                         const Grid& grid, const RowWalk& walk, int lane,
                                         WarpMemory<T, kVectors>& memory, F f) {
  constexpr int kMost = kDrawnRows<T, kVectors>;
  while (walk.rows > 0) {
    draw_rows<T, kVectors>(seeded(rule, rng), grid, walk.element,
                           walk.rows < kMost ? walk.rows : kMost, lane, memory);
    __syncwarp();
    f();
    __syncwarp();
  }
}

// ---- the host's part --------------------------------------------------------------------------

inline int64_t least_common_multiple(int64_t a, int64_t b) {
  int64_t x = a;
  for (int64_t y = b; y != 0;) {
    const int64_t rest = x % y;
    x = y;
    y = rest;
  }
  return a / x * b;
}

// Whether a kernel for T may access all of these 16 bytes at a time. A warp's accesses of doubles
// would cover half a group of the mask.
template <class T>
bool epilogue_vectors_fit(const void* a, const void* b, const void* c) {
  return sizeof(T) < 8 && is_aligned(a, 16) && is_aligned(b, 16) && is_aligned(c, 16);
}

// The rows of a slice, and what follows from them.
inline void set_item_rows(Grid* grid, int64_t item_rows, const MaskRule& rule) {
  if (item_rows < 1) item_rows = 1;
  grid->item_rows = item_rows < rows_of(*grid) ? item_rows : rows_of(*grid);
  grid->whole_slices = ceil_div(grid->whole_rows, grid->item_rows);
  const int64_t slices = grid->whole_slices + (grid->rest > 0 ? 1 : 0);
  grid->slice_groups = ceil_div(slices, slice_warps(*grid));
  grid->by_digits = grid->item_rows * grid->tile_groups <= 2 && rule.digits > 1 &&
                    rule.digits <= static_cast<uint32_t>(kDigitLanes);
}

// As many rows as a warp can draw at once, or fewer where there are not enough for all warps. Of a
// large tensor as many as fill the multiprocessors once, or several times: a part of a time would
// take as long. Where sums are wanted few rows are a single slice of every warp.
inline int64_t wanted_item_rows(const Grid& grid, bool with_sums, int blocks) {
  const int64_t rows = rows_of(grid);
  if (with_sums && rows <= slice_warps(grid) * kFewSumRows) {
    return ceil_div(rows, slice_warps(grid));
  }
  const int64_t tiles = rows * grid.tiles.value;
  const int64_t resident = 132 * blocks * kWarps;  // warps that an H200 holds at a time
  if (tiles * grid.tile_groups < resident * kWarpLanes) {
    return groups_per_warp(tiles * grid.tile_groups) / grid.tile_groups;
  }
  const int64_t times = ceil_div(tiles, resident * (with_sums ? kMaxSumRows : kMaxItemRows));
  const int64_t groups = resident * times / (grid.tiles.value * slice_warps(grid));
  return ceil_div(rows, (groups > 0 ? groups : 1) * slice_warps(grid));
}

// How `count` > 0 elements are cut. features == 0: no column matters, there is no bias.
template <class T>
Grid make_epilogue_grid(const MaskRule& rule, int64_t count, int64_t features, bool with_sums,
                        bool vectors) {
  Grid grid{};
  grid.features = make_divisor(features > 0 ? features : 1);
  const int64_t whole =
      features > 0 ? least_common_multiple(features, kGroupColumns) : kFreeColumns;
  grid.columns = whole < count ? whole : count;
  const bool joins =
      !with_sums || grid.columns <= features || grid.columns <= count / kElementsPerSum;
  if (!joins) grid.columns = features;
  grid.vectors = vectors && joins;
  const int64_t tile = grid.vectors ? kTileColumns<T, true> : kTileColumns<T, false>;
  grid.whole_rows = count / grid.columns;
  grid.rest = count % grid.columns;
  grid.tiles = make_divisor(ceil_div(grid.columns, tile));
  grid.tile_groups = joins ? static_cast<int>(tile / kGroupColumns) : 2;
  while (with_sums && slice_warps(grid) < kWarps && 2 * slice_warps(grid) <= rows_of(grid)) {
    ++grid.slice_shift;
  }
  set_item_rows(&grid, wanted_item_rows(grid, with_sums, kBlocks<T>), rule);
  return grid;
}

// A tensor of 2^40 elements still has fewer than 2^31.
inline dim3 epilogue_blocks(const Grid& grid) {
  return dim3(static_cast<unsigned>(ceil_div(items_of(grid), kWarps)));
}

}  // namespace
}  // namespace fused_dropout::bias_act_dropout_add
