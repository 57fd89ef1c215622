// Zoneout: out = kept ? input : previous, and grad into two, in blocks of a group's 128 elements.
//
// Elements are moved, not computed with: by their bits, so that NaNs keep theirs too, and alike for
// all types of a size. Vectors are the compiler's own, of whatever registers the instruction set
// has.
//
// Floor: the bytes, of two tensors in and one out, or one in and two out. Per 32 bytes there are 3
// operations to spread the bits over the elements, and 3 to apply them.
#pragma once

#include "../../zoneout.h"
#include "../draw_groups.h"
#include "../gather_columns.h"

namespace fused_dropout::zoneout {
namespace {

constexpr int64_t kPrefetchBytes = 2048;  // ahead

// What 32 bytes hold of elements of U's size.
template <class U>
struct Moved {
  static constexpr int kLanes = 32 / sizeof(U);
  typedef U Vector __attribute__((vector_size(32)));
  typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));  // one for each element
  Vector v;
};

template <class U>
FUSED_DROPOUT_INLINE Moved<U> load_moved(const void* from, int64_t k) {
  Moved<U> moved;
  __builtin_memcpy(&moved.v, static_cast<const U*>(from) + k, sizeof moved.v);
  return moved;
}
template <class U>
FUSED_DROPOUT_INLINE void store_moved(const Moved<U>& moved, void* to, int64_t k) {
  __builtin_memcpy(static_cast<U*>(to) + k, &moved.v, sizeof moved.v);
}

// Ones in the elements whose bit is set, of kLanes bits from the lowest on.
template <class U>
FUSED_DROPOUT_INLINE Moved<U> ones_of_bits(uint32_t bits) {
  typename Moved<U>::Vector own = {};
  for (int k = 0; k < Moved<U>::kLanes; ++k) own[k] = static_cast<U>(U{1} << k);
  const typename Moved<U>::Vector all = static_cast<U>(bits) - typename Moved<U>::Vector{};
  return {reinterpret_cast<typename Moved<U>::Vector>((all & own) == own)};
}

// The same for elements that have a word each, of which `bit` is theirs.
template <class U>
FUSED_DROPOUT_INLINE Moved<U> ones_of_words(const uint32_t* words, uint32_t bit) {
  typename Moved<U>::Words mine;
  __builtin_memcpy(&mine, words, sizeof mine);
  const auto set = (mine & bit) != 0;
  return {__builtin_convertvector(set, typename Moved<U>::Vector)};
}

// What a pass does to elements k, k + 1, ... of its run: `ones` says which are kept.
template <class U>
FUSED_DROPOUT_INLINE void move(const Selection& run, int64_t k, const Moved<U>& ones) {
  const Moved<U> input = load_moved<U>(run.input, k);
  const Moved<U> previous = load_moved<U>(run.previous, k);
  store_moved<U>({(input.v & ones.v) | (previous.v & ~ones.v)}, run.out, k);
}
template <class U>
FUSED_DROPOUT_INLINE void move(const Split& run, int64_t k, const Moved<U>& ones) {
  const Moved<U> grad = load_moved<U>(run.grad, k);
  store_moved<U>({grad.v & ones.v}, run.d_input, k);
  store_moved<U>({grad.v & ~ones.v}, run.d_previous, k);
}

template <class U>
FUSED_DROPOUT_INLINE void move_one(const Selection& run, int64_t k, bool kept) {
  const void* const from = kept ? run.input : run.previous;
  static_cast<U*>(run.out)[k] = static_cast<const U*>(from)[k];
}
template <class U>
FUSED_DROPOUT_INLINE void move_one(const Split& run, int64_t k, bool kept) {
  const U grad = static_cast<const U*>(run.grad)[k];
  static_cast<U*>(run.d_input)[k] = kept ? grad : U{0};
  static_cast<U*>(run.d_previous)[k] = kept ? U{0} : grad;
}

template <class U>
FUSED_DROPOUT_INLINE void prefetch_at(const void* from, int64_t k) {
  __builtin_prefetch(reinterpret_cast<const char*>(static_cast<const U*>(from) + k) +
                     kPrefetchBytes);
}
template <class U>
FUSED_DROPOUT_INLINE void prefetch(const Selection& run, int64_t k) {
  prefetch_at<U>(run.input, k);
  prefetch_at<U>(run.previous, k);
}
template <class U>
FUSED_DROPOUT_INLINE void prefetch(const Split& run, int64_t k) {
  prefetch_at<U>(run.grad, k);
}

// Calls words_of(block), the block's four words, for every block of the run, which is a copy: no
// store can change where its elements are.
template <class U, class Run, class WordsOf>
FUSED_DROPOUT_INLINE void move_blocks(const Run run, WordsOf words_of) {
  constexpr int kLanes = Moved<U>::kLanes;
  constexpr int kLineElements = 64 / sizeof(U);
  int64_t first = 0;
  for (; first + kGroupColumns <= run.count; first += kGroupColumns) {
    const uint32_t* const words = words_of(first / kGroupColumns);
    for (int w = 0; w < kGroupWords; ++w) {
      const uint32_t word = words[w];
      for (int k = 0; k < 32; k += kLanes) {
        const int64_t at = first + 32 * w + k;
        if (k % kLineElements == 0) prefetch<U>(run, at);
        move(run, at, ones_of_bits<U>(word >> k));
      }
    }
  }
  if (first == run.count) return;
  const uint32_t* const words = words_of(first / kGroupColumns);
  for (int64_t k = first; k < run.count; ++k) {
    move_one<U>(run, k, bit_at(words, static_cast<uint64_t>(k - first)));
  }
}

template <class U, class Run>
void draw_and_apply(const MaskRule& rule, const Run& run, uint64_t first_group) {
  uint32_t bits[kDrawnGroups * kGroupWords];
  const int64_t groups = group_count(run.count);
  move_blocks<U>(run, [&](int64_t block) {
    const int64_t k = block % kDrawnGroups;
    if (k == 0) {
      const int64_t left = groups - block;
      draw_groups(rule, first_group + static_cast<uint64_t>(block), 1,
                  left < kDrawnGroups ? left : kDrawnGroups, bits);
    }
    return bits + k * kGroupWords;
  });
}

template <class U, class Run>
void apply(const Run& run, const uint32_t* bits) {
  move_blocks<U>(run, [=](int64_t block) { return bits + block * kGroupWords; });
}

template <class U, class Run>
void apply_columns(const Run& tensors, const ColumnBits& tile, const uint32_t* bits) {
  constexpr int kLanes = Moved<U>::kLanes;
  const Run run = tensors;  // as in move_blocks
  static_assert(kLanes <= dropout::kMinColumns, "a row holds a vector");
  uint32_t words[dropout::kMaxColumnWords];
  dropout::gather_columns(tile, bits, words);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const uint32_t* const row = words + r / 32 * tile.cols;
    const int64_t first = r * tile.row_stride;
    for (int64_t c = 0; c < tile.cols; c += kLanes) {
      // The last vector may overlap the one before it, and then writes the same again.
      const int64_t k = c + kLanes <= tile.cols ? c : tile.cols - kLanes;
      prefetch<U>(run, first + k);
      move(run, first + k, ones_of_words<U>(row + k, 1u << (r % 32)));
    }
  }
}

// In the order of ScalarType.
template <class Run>
Pass<Run> pass_of() {
  return {{draw_and_apply<uint32_t, Run>, draw_and_apply<uint16_t, Run>,
           draw_and_apply<uint16_t, Run>, draw_and_apply<uint64_t, Run>},
          {apply<uint32_t, Run>, apply<uint16_t, Run>, apply<uint16_t, Run>, apply<uint64_t, Run>},
          {apply_columns<uint32_t, Run>, apply_columns<uint16_t, Run>, apply_columns<uint16_t, Run>,
           apply_columns<uint64_t, Run>}};
}

}  // namespace

static Kernels make_kernels(const Kernels*) { return {pass_of<Selection>(), pass_of<Split>()}; }

}  // namespace fused_dropout::zoneout

FUSED_DROPOUT_INSTANTIATE(fused_dropout::zoneout::Kernels);
