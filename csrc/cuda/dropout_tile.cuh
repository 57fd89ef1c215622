// What the dropout kernels share: a warp that has the mask bits of a tile of elements reads the
// elements, maps them and writes the results.
//
// A lane reads several accesses before it writes the first result, since the compiler, to which
// `out` may be `in`, cannot move a load across a store: the bytes in flight are what the speed of
// memory asks for. The first accesses are read before the bits are drawn or gathered.
#pragma once

#include "divisor.cuh"
#include "elements.cuh"

namespace fused_dropout::dropout {

// `residual` may be null; `out` may be `in`.
template <class T>
struct Operands {
  const T* in;
  const T* residual;
  T* out;
  int64_t count;
};

namespace {

// Of a multiprocessor, at least: drawing takes 80 registers beside the elements that have been
// read. Single elements take more, eight of them being read at once.
template <int kCount>
constexpr int kBlocks = kCount == 1 ? 2 : 3;

constexpr int kTileElements = kWarpLanes * kGroupColumns;
constexpr int kTileWords = kTileElements / 32;

template <class S>
struct AffineReals {
  S scale, shift, fill;
};

// Adding -0 changes nothing, whereas adding a shift of 0 would turn -0 into 0.
template <class T>
AffineReals<Real<T>> reals_of(const AffineMap& map) {
  const auto shift = static_cast<Real<T>>(map.shift);
  return {static_cast<Real<T>>(map.scale), shift == 0 ? -Real<T>(0) : shift,
          static_cast<Real<T>>(map.fill)};
}

// One map for all elements.
template <class S>
struct OneMap {
  AffineReals<S> map;
  FUSED_DROPOUT_DEVICE OneMap from(int64_t) const { return *this; }
  FUSED_DROPOUT_DEVICE AffineReals<S> at(int64_t) const { return map; }
  bool allows_vectors_of(int) const { return true; }
};

template <class T>
OneMap<Real<T>> one_map(const AffineMap& map) {
  return {reals_of<T>(map)};
}

// Element k is multiplied by scale[k / run], in device memory, if it is kept.
template <class S>
struct ScaleOfRun {
  const double* scale;
  Divisor run;

  // For elements counted from `first` on. Most of a tile's are of the same run.
  struct Nearby {
    const double* scale;
    Divisor run;
    int64_t first;
    int64_t left;  // elements of the first one's run
    S first_scale;
    FUSED_DROPOUT_DEVICE AffineReals<S> at(int64_t k) const {
      const S s = k < left ? first_scale : static_cast<S>(scale[quotient(first + k, run)]);
      return {s, -S(0), S(0)};
    }
  };

  FUSED_DROPOUT_DEVICE Nearby from(int64_t first) const {
    const int64_t k = quotient(first, run);
    return {scale, run, first, (k + 1) * run.value - first, static_cast<S>(scale[k])};
  }
  bool allows_vectors_of(int count) const { return run.value % count == 0; }
};

// Elements that are neighbours in memory, in the order of their bits.
struct Neighbourhood {
  static constexpr int kSingles = 8;  // read at once, where accesses are of one element
  int count;
  FUSED_DROPOUT_DEVICE int bits() const { return count; }
  FUSED_DROPOUT_DEVICE bool has(int bit) const { return bit < count; }
  FUSED_DROPOUT_DEVICE int offset(int bit) const { return bit; }
};

// Rows of `cols` elements, `stride` apart in memory; their bits are `pitch.value` apart.
struct Rows {
  static constexpr int kSingles = 4;
  int rows;
  int cols;
  SmallDivisor pitch;
  int64_t stride;
  FUSED_DROPOUT_DEVICE int bits() const { return rows * pitch.value; }
  FUSED_DROPOUT_DEVICE bool has(int bit) const {
    const int row = small_quotient(bit, pitch);
    return row < rows && bit - row * pitch.value < cols;
  }
  FUSED_DROPOUT_DEVICE int64_t offset(int bit) const {
    const int row = small_quotient(bit, pitch);
    return row * stride + (bit - row * pitch.value);
  }
};

// Rows of at most 32 elements, whose bits are 32 apart.
struct RowsOf32 {
  static constexpr int kSingles = 8;
  int rows;
  int cols;
  int64_t stride;
  FUSED_DROPOUT_DEVICE int bits() const { return rows * 32; }
  FUSED_DROPOUT_DEVICE bool has(int bit) const { return bit >> 5 < rows && (bit & 31) < cols; }
  FUSED_DROPOUT_DEVICE int64_t offset(int bit) const { return (bit >> 5) * stride + (bit & 31); }
};

// Accesses of a lane that are read before the first result is written.
template <class T, int kCount, class Places>
constexpr int kAtOnce = kCount > 1 || sizeof(T) > 4 ? 2 : Places::kSingles;

// Access j of a lane has the elements of bits first + 32 kCount j and on; it is there as a whole or
// not at all.
template <class T, int kCount, class Places>
FUSED_DROPOUT_DEVICE void load_accesses(const T* from, const Places& places, int first,
                                        Packed<T, kCount>* to) {
#pragma unroll
  for (int j = 0; j < kAtOnce<T, kCount, Places>; ++j) {
    const int bit = first + j * kWarpLanes * kCount;
    if (places.has(bit)) to[j] = load_packed<T, kCount>(from + places.offset(bit));
  }
}

// Whatever stands in a dropped element, a NaN too, does not reach its result.
template <bool kResidual, class T, int kCount>
FUSED_DROPOUT_DEVICE Packed<T, kCount> mapped(const AffineReals<Real<T>>& map,
                                              const Packed<T, kCount>& in,
                                              const Packed<T, kCount>& residual, uint32_t bits) {
  Neighbours<T, kCount> x = unpacked<T, kCount>(in);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const Real<T> y = fma(map.scale, widen(x.element[i]), map.shift);
    const Real<T> kept = bits >> i & 1 ? y : map.fill;
    if constexpr (kResidual) {
      narrow(kept + widen(unpacked<T, kCount>(residual).element[i]), &x.element[i]);
    } else {
      narrow(kept, &x.element[i]);
    }
  }
  return packed<T, kCount>(x);
}

template <class T, int kCount, bool kResidual, class Map, class Places>
FUSED_DROPOUT_DEVICE void finish_accesses(const Operands<T>& tile, const Map& map,
                                          const Places& places, const uint32_t* words, int first,
                                          const Packed<T, kCount>* in) {
  Packed<T, kCount> residual[kAtOnce<T, kCount, Places>];
  if constexpr (kResidual) load_accesses<T, kCount>(tile.residual, places, first, residual);
  uint32_t bits[kAtOnce<T, kCount, Places>];  // of all accesses, there or not: one address for all
#pragma unroll
  for (int j = 0; j < kAtOnce<T, kCount, Places>; ++j) {
    bits[j] = words[(first >> 5) + j * kCount] >> (first & 31);
  }
#pragma unroll
  for (int j = 0; j < kAtOnce<T, kCount, Places>; ++j) {
    const int bit = first + j * kWarpLanes * kCount;
    if (places.has(bit)) {
      const auto offset = places.offset(bit);
      store_packed<T, kCount>(
          mapped<kResidual, T, kCount>(map.at(offset), in[j], residual[j], bits[j]),
          tile.out + offset);
    }
  }
}

// Both ways to finish.
template <class T, int kCount, class Map, class Places>
FUSED_DROPOUT_DEVICE void finish_accesses(const Operands<T>& tile, const Map& map,
                                          const Places& places, const uint32_t* words, int first,
                                          const Packed<T, kCount>* in) {
  if (tile.residual == nullptr) {
    finish_accesses<T, kCount, false>(tile, map, places, words, first, in);
  } else {
    finish_accesses<T, kCount, true>(tile, map, places, words, first, in);
  }
}

// Accesses of 16 bytes wait in shared memory, kRing of each lane, which takes no registers from
// drawing.
constexpr int kRing = 8;

// Starts to read kAtOnce accesses into places slot, slot + 1, ... of this thread's ring.
template <class T, int kCount, class Places>
FUSED_DROPOUT_DEVICE void stage_accesses(const T* from, const Places& places, int first,
                                         uint4* ring, int slot) {
#pragma unroll
  for (int j = 0; j < kAtOnce<T, kCount, Places>; ++j) {
    const int bit = first + j * kWarpLanes * kCount;
    if (places.has(bit)) {
      copy_async<16>(&ring[(slot + j) * kElementThreads], from + places.offset(bit));
    }
  }
}

// Of a warp. The operands point to the tile's first element. fill() writes the tile's bits to
// `words`, in shared memory, while the first elements are on their way.
template <class T, int kCount, class Map, class Places, class Fill>
FUSED_DROPOUT_DEVICE void apply_tile(const Operands<T>& tile, const Map& map, const Places& places,
                                     const uint32_t* words, int lane, Fill fill) {
  constexpr int kStep = kAtOnce<T, kCount, Places> * kWarpLanes * kCount;
  const int end = places.bits();
  Packed<T, kCount> in[kAtOnce<T, kCount, Places>];
  if constexpr (sizeof in[0] == sizeof(uint4)) {
    constexpr int kAhead = kRing / kAtOnce<T, kCount, Places>;
    FUSED_DROPOUT_SHARED(uint4, rings, [kRing * kElementThreads]);
    uint4* const ring = &rings[threadIdx.x];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      stage_accesses<T, kCount>(tile.in, places, k * kStep + lane * kCount, ring,
                                k * kAtOnce<T, kCount, Places>);
      copy_async_commit();
    }
    fill();
    __syncwarp();
    int slot = 0;
#pragma unroll 1
    for (int first = 0; first < end; first += kStep) {
      copy_async_wait<kAhead - 1>();
#pragma unroll
      for (int j = 0; j < kAtOnce<T, kCount, Places>; ++j) {
        in[j] = load_packed<T, kCount>(&ring[(slot + j) * kElementThreads]);
      }
      finish_accesses<T, kCount>(tile, map, places, words, first + lane * kCount, in);
      const int next = first + kAhead * kStep;
      if (next < end) stage_accesses<T, kCount>(tile.in, places, next + lane * kCount, ring, slot);
      copy_async_commit();
      slot = (slot + kAtOnce<T, kCount, Places>) % kRing;
    }
  } else {
    load_accesses<T, kCount>(tile.in, places, lane * kCount, in);
    fill();
    __syncwarp();
#pragma unroll 1
    for (int first = 0; first < end; first += kStep) {
      if (first > 0) load_accesses<T, kCount>(tile.in, places, first + lane * kCount, in);
      finish_accesses<T, kCount>(tile, map, places, words, first + lane * kCount, in);
    }
  }
}

// The same for `count` neighbours, of which the last may not fill an access.
template <class T, int kCount, class Map, class Fill>
FUSED_DROPOUT_DEVICE void apply_neighbours(const Operands<T>& tile, const Map& map, int count,
                                           const uint32_t* words, int lane, Fill fill) {
  const int whole = count - count % kCount;
  apply_tile<T, kCount>(tile, map, Neighbourhood{whole}, words, lane, fill);
  const int k = whole + lane;
  if (k >= count) return;
  const auto in = load_packed<T, 1>(tile.in + k);
  const uint32_t bits = words[k >> 5] >> (k & 31);
  if (tile.residual == nullptr) {
    store_packed<T, 1>(mapped<false, T, 1>(map.at(k), in, in, bits), tile.out + k);
  } else {
    const auto residual = load_packed<T, 1>(tile.residual + k);
    store_packed<T, 1>(mapped<true, T, 1>(map.at(k), in, residual, bits), tile.out + k);
  }
}

// The words of a warp's tile.
FUSED_DROPOUT_DEVICE uint32_t* words_of_warp(uint32_t* words) {
  return words + threadIdx.x / kWarpLanes * kTileWords;
}

// The operands of the elements from `first` on.
template <class T>
FUSED_DROPOUT_DEVICE Operands<T> operands_from(const Operands<T>& all, int64_t first) {
  return {all.in + first, all.residual != nullptr ? all.residual + first : nullptr, all.out + first,
          all.count - first};
}

// ---- launches ---------------------------------------------------------------------------------

template <class T>
bool vectors_fit(const Operands<T>& tensors) {
  return is_aligned(tensors.in, 16) && is_aligned(tensors.residual, 16) &&
         is_aligned(tensors.out, 16);
}

inline dim3 tile_blocks(int64_t tiles) { return element_blocks(tiles * kWarpLanes); }

}  // namespace
}  // namespace fused_dropout::dropout
