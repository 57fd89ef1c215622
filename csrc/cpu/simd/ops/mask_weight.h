// Weights under the masks of DropConnect, and sums of matrices under them, one group of 128 columns
// at a time.
//
// Floor: the bytes of `in` and `out`. A block of 32 output features times 8 groups is drawn into
// level-1 cache, 4 KiB of bits, just before it is used; at one digit that costs a tenth of moving
// the elements.
#pragma once

#include "../../mask_weight.h"
#include "../mask_bits.h"
#include "../panels.h"
#include "../transpose_bits.h"

namespace fused_dropout::mask_weight {
namespace {

constexpr int64_t kTileGroups = 8;
constexpr int64_t kMasksPerSum = 32;  // sums of so many masks: they keep rounding errors small

// The bits of one mask for up to kTileOuts output features and kTileGroups groups: drawn, or read
// where they are stored.
class TileBits {
 public:
  TileBits(const DropConnectProblem& problem, const Tile& tile) {
    if (problem.mask_bits != nullptr) {
      const StoredMasks stored(problem);
      first_ = stored.at(tile.groups.begin, tile.mask, tile.outs.begin);
      group_words_ = stored.group_words;
    } else {
      draw_masks(problem, tile.groups, {tile.mask, tile.mask + 1}, tile.outs, drawn_);
      first_ = drawn_;
      group_words_ = tile.outs.size() * kGroupWords;
    }
  }

  // Of the tile's group g and output feature o.
  const uint8_t* of(int64_t g, int64_t o) const {
    return reinterpret_cast<const uint8_t*>(first_ + g * group_words_ + o * kGroupWords);
  }

 private:
  const uint32_t* first_;
  int64_t group_words_;
  uint32_t drawn_[kTileOuts * kTileGroups * kGroupWords];
};

// Calls f(bits, output feature, first column, number of columns), the first two counted within the
// tile, for every group of every output feature.
template <class F>
FUSED_DROPOUT_INLINE void for_each_group(const DropConnectProblem& problem, const Tile& tile, F f) {
  const int64_t last_col = smaller(tile.groups.end * kGroupColumns, problem.in_features);
  for (int64_t o = tile.outs.begin; o < tile.outs.end; o += kTileOuts) {
    for (int64_t g = tile.groups.begin; g < tile.groups.end; g += kTileGroups) {
      const Tile part = {tile.mask,
                         {o, smaller(o + kTileOuts, tile.outs.end)},
                         {g, smaller(g + kTileGroups, tile.groups.end)}};
      const TileBits bits(problem, part);
      for (int64_t r = 0; r < part.outs.size(); ++r) {
        for (int64_t c = 0; c < part.groups.size(); ++c) {
          const int64_t col = (g + c) * kGroupColumns;
          f(bits.of(c, r), o - tile.outs.begin + r, col - tile.groups.begin * kGroupColumns,
            smaller(kGroupColumns, last_col - col));
        }
      }
    }
  }
}

// The `count` elements of a group, `stride` apart, and zeros up to 128: where they are, or copied
// to `block`.
template <class T>
FUSED_DROPOUT_INLINE const T* whole_group(const T* in, int64_t stride, int64_t count, T* block) {
  if (stride == 1 && count == kGroupColumns) return in;
  int64_t k = 0;
  for (; k < count; ++k) block[k] = in[k * stride];
  for (; k < kGroupColumns; ++k) block[k] = T{};
  return block;
}

// out = kept ? scale * in : 0, of 128 elements.
template <class T, class Out>
FUSED_DROPOUT_INLINE void put(const uint8_t* bits, const T* in, Vec<Real<T>> scale, Out* out) {
  constexpr int kLanes = Vec<Real<T>>::kLanes;
  const Vec<Real<T>> zero = broadcast(Real<T>(0));
  for (int chunk = 0; chunk < kGroupColumns / kLanes; ++chunk) {
    const Vec<Real<T>> x = scale * widen_vector(in + chunk * kLanes);
    narrow_vector(select_kept(bits, chunk, x, zero), out + chunk * kLanes);
  }
}

// sum += kept ? scale * in : 0.
template <class T>
FUSED_DROPOUT_INLINE void add(const uint8_t* bits, const T* in, Vec<Real<T>> scale, Real<T>* sum) {
  constexpr int kLanes = Vec<Real<T>>::kLanes;
  for (int chunk = 0; chunk < kGroupColumns / kLanes; ++chunk) {
    const int k = chunk * kLanes;
    store(sum + k, fma_kept(bits, chunk, widen_vector(in + k), scale, load(sum + k)));
  }
}

// Puts the tile's masked weights into `out`, or adds them to what is there.
template <class T, class Out, bool kAdds>
void apply(const DropConnectProblem& problem, const MatrixView& weight, const Tile& tile, void* out,
           int64_t out_stride) {
  const T* const in = static_cast<const T*>(weight.data);
  const Vec<Real<T>> scale = broadcast(static_cast<Real<T>>(problem.scale));
  for_each_group(problem, tile, [&](const uint8_t* bits, int64_t o, int64_t col, int64_t count) {
    T block[kGroupColumns];
    const T* const from = whole_group(in + o * weight.row_stride + col * weight.col_stride,
                                      weight.col_stride, count, block);
    Out* const to = static_cast<Out*>(out) + o * out_stride + col;
    const auto put_or_add = [&](Out* place) {
      if constexpr (kAdds) {
        add<T>(bits, from, scale, place);
      } else {
        put<T>(bits, from, scale, place);
      }
    };
    if (count == kGroupColumns) return put_or_add(to);
    Out rest[kGroupColumns] = {};
    if (kAdds) __builtin_memcpy(rest, to, count * sizeof(Out));
    put_or_add(rest);
    __builtin_memcpy(to, rest, count * sizeof(Out));
  });
}

// One mask's bits for up to 128 output features and kTileGroups groups: kept[column][2 words].
struct TurnedBits {
  uint64_t kept[kTileGroups * kGroupColumns][kGroupColumns / kTurnedRows];

  TurnedBits(const DropConnectProblem& problem, const Tile& tile) {
    for (int64_t first = 0; first < tile.outs.size(); first += kTurnedRows) {
      uint8_t rows[kTileGroups][kTurnedRows * kRowBytes] = {};
      for (int64_t o = first; o < smaller(first + kTurnedRows, tile.outs.size()); o += kTileOuts) {
        const Range outs = {tile.outs.begin + o,
                            smaller(tile.outs.begin + o + kTileOuts, tile.outs.end)};
        const TileBits bits(problem, {tile.mask, outs, tile.groups});
        for (int64_t g = 0; g < tile.groups.size(); ++g) {
          __builtin_memcpy(rows[g] + (o - first) * kRowBytes, bits.of(g, 0),
                           static_cast<size_t>(outs.size() * kRowBytes));
        }
      }
      for (int64_t g = 0; g < tile.groups.size(); ++g) {
        transpose_bits(rows[g], &kept[g * kGroupColumns][first / kTurnedRows],
                       kGroupColumns / kTurnedRows);
      }
    }
  }
};

template <class T>
void apply_transposed(const DropConnectProblem& problem, const void* weight, int64_t stride,
                      const Tile& tile, void* out, int64_t out_stride) {
  constexpr int kLanes = Vec<Real<T>>::kLanes;
  const Vec<Real<T>> scale = broadcast(static_cast<Real<T>>(problem.scale));
  const Vec<Real<T>> zero = broadcast(Real<T>(0));
  const int64_t last_col = smaller(tile.groups.end * kGroupColumns, problem.in_features);
  const int chunks = static_cast<int>(ceil_div(tile.outs.size(), kLanes));
  const T* from = static_cast<const T*>(weight);
  T* to = static_cast<T*>(out);
  for (int64_t g = tile.groups.begin; g < tile.groups.end; g += kTileGroups) {
    const TurnedBits bits(problem,
                          {tile.mask, tile.outs, {g, smaller(g + kTileGroups, tile.groups.end)}});
    const int64_t cols = smaller(kTileGroups * kGroupColumns, last_col - g * kGroupColumns);
    for (int64_t c = 0; c < cols; ++c, from += stride, to += out_stride) {
      const uint8_t* const kept = reinterpret_cast<const uint8_t*>(bits.kept[c]);
      if (tile.outs.size() == kGroupColumns) {
        put<T>(kept, from, scale, to);
        continue;
      }
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const Vec<Real<T>> x = scale * widen_vector(from + chunk * kLanes);
        narrow_vector(select_kept(kept, chunk, x, zero), to + chunk * kLanes);
      }
    }
  }
}

// What `sum` works on: an output feature's 128 columns after another's.
template <class R>
struct Sums {
  R element[kTileOuts * kGroupColumns];

  void clear() {
    for (R& x : element) x = 0;
  }
  void add(const Sums& other) {
    for (int64_t k = 0; k < kTileOuts * kGroupColumns; ++k) element[k] += other.element[k];
  }
};

template <class T>
void sum(const DropConnectProblem& problem, const StackView& stack, Range outs, int64_t group,
         void* out) {
  using R = Real<T>;
  const int64_t first_col = group * kGroupColumns;
  const int64_t count = smaller(kGroupColumns, problem.in_features - first_col);
  const Vec<R> one = broadcast(R(1));
  Sums<R> total, part;
  total.clear();
  for (int64_t k = 0; k < problem.rows; k += kMasksPerSum) {
    part.clear();
    for (int64_t mask = k; mask < smaller(k + kMasksPerSum, problem.rows); ++mask) {
      const TileBits bits(problem, {mask, outs, {group, group + 1}});
      const T* in = static_cast<const T*>(stack.data) + mask * stack.mask_stride +
                    outs.begin * stack.row_stride + first_col * stack.col_stride;
      for (int64_t o = 0; o < outs.size(); ++o, in += stack.row_stride) {
        T block[kGroupColumns];
        add<T>(bits.of(0, o), whole_group(in, stack.col_stride, count, block), one,
               part.element + o * kGroupColumns);
      }
    }
    total.add(part);
  }
  const R scale = static_cast<R>(problem.scale);
  T* to = static_cast<T*>(out) + outs.begin * problem.in_features + first_col;
  for (int64_t o = 0; o < outs.size(); ++o, to += problem.in_features) {
    for (int64_t c = 0; c < count; ++c)
      narrow(total.element[o * kGroupColumns + c] * scale, to + c);
  }
}

template <class T>
void add_row(const void* row, int64_t count, void* out) {
  constexpr int kLanes = Vec<Real<T>>::kLanes;
  const Real<T>* const from = static_cast<const Real<T>*>(row);
  T* const to = static_cast<T*>(out);
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    narrow_vector(widen_vector(to + k) + load(from + k), to + k);
  }
  for (; k < count; ++k) narrow(widen(to[k]) + from[k], to + k);
}

template <class T>
bool is_finite(const void* data, int64_t stride, int64_t count) {
  return all_finite(static_cast<const T*>(data), stride, count);
}

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {{apply<float, float, false>, apply<BFloat16, BFloat16, false>,
           apply<Float16, Float16, false>, apply<double, double, false>},
          {apply<float, float, false>, apply<BFloat16, float, false>, apply<Float16, float, false>,
           apply<double, double, false>},
          {apply_transposed<float>, apply_transposed<BFloat16>, apply_transposed<Float16>,
           apply_transposed<double>},
          {apply<float, float, true>, apply<BFloat16, float, true>, apply<Float16, float, true>,
           apply<double, double, true>},
          {sum<float>, sum<BFloat16>, sum<Float16>, sum<double>},
          {add_row<float>, add_row<BFloat16>, add_row<Float16>, add_row<double>},
          {is_finite<float>, is_finite<BFloat16>, is_finite<Float16>, is_finite<double>}};
}

}  // namespace fused_dropout::mask_weight

FUSED_DROPOUT_INSTANTIATE(fused_dropout::mask_weight::Kernels);
