// DropBlock's masks: from the keep bits of seeds to those of elements, all on packed bits.
//
// The dropped seeds are laid out as the elements are, each at the last element of its block. Then
// an element is dropped iff one of the `block` bits from its own on is set along each dimension,
// and because a map's first block - 1 places along a dimension hold no seed, a window that runs
// over the end of a row finds zeros in the next. So a dimension takes log2(block) passes over flat
// words, each `out = in | in >> shift`, whatever the sizes: 64 elements an operation, in vectors.
// Floor: the bits, 1/32 of a float input's bytes.
#pragma once

#include "../../../common/drop_block.h"
#include "../../../common/packed_bits.h"
#include "../../drop_block.h"
#include "../prelude.h"

namespace fused_dropout::drop_block {
namespace {

FUSED_DROPOUT_INLINE int64_t words_of_bits(int64_t bits) { return (bits + 63) / 64; }

// A window reaches less than a map past the last element.
FUSED_DROPOUT_INLINE int64_t padded_words(const BlockMaps& maps) {
  return words_of_bits(maps.count * elements_of_map(maps)) + words_of_bits(elements_of_map(maps)) +
         2;
}

int64_t scratch_words(const BlockMaps& maps) { return 2 * padded_words(maps); }

// The complements of a row of `count` seeds' keep bits, from bit `from` on, to `out` from `to` on.
FUSED_DROPOUT_INLINE void place_row(const uint32_t* seeds, int64_t from, int64_t count,
                                    uint64_t* out, int64_t to) {
  for (int64_t done = 0; done < count; done += 64) {
    const int64_t left = count - done;
    const uint64_t exist = left < 64 ? (uint64_t{1} << left) - 1 : ~uint64_t{0};
    const uint64_t dropped = ~bits_from(seeds, static_cast<uint64_t>(from + done)) & exist;
    if (dropped != 0) put_bits(out, to + done, dropped);  // most rows have none
  }
}

FUSED_DROPOUT_INLINE void place_seeds(const BlockMaps& maps, const uint32_t* seeds,
                                      int64_t first_seed, uint64_t* out) {
  const int64_t count = seeds_along(maps, 2);
  for (int64_t map = 0; map < maps.count; ++map) {
    for (int64_t z = maps.block[0] - 1; z < maps.size[0]; ++z) {
      for (int64_t y = maps.block[1] - 1; y < maps.size[1]; ++y, first_seed += count) {
        const int64_t row = (map * maps.size[0] + z) * maps.size[1] + y;
        place_row(seeds, first_seed, count, out, row * maps.size[2] + maps.block[2] - 1);
      }
    }
  }
}

// Bit k of `out` is bit k or bit k + shift of `in`.
FUSED_DROPOUT_INLINE void or_shifted(const uint64_t* __restrict in, int64_t words, int64_t shift,
                                     uint64_t* __restrict out) {
  const uint64_t* const ahead = in + shift / 64;
  const int right = static_cast<int>(shift % 64);
  if (right == 0) {
    for (int64_t w = 0; w < words; ++w) out[w] = in[w] | ahead[w];
  } else {
    for (int64_t w = 0; w < words; ++w) {
      out[w] = in[w] | ahead[w] >> right | ahead[w + 1] << (64 - right);
    }
  }
}

// The words of `from`, whose bits past the first `words` are 0, become the OR of `block` bits that
// are `stride` apart. The result is in `from`, and `to` is as large.
FUSED_DROPOUT_INLINE void dilate_along(int64_t block, int64_t stride, int64_t words,
                                       uint64_t*& from, uint64_t*& to) {
  for (int64_t covered = 1; covered < block;) {
    const int64_t more = covered < block - covered ? covered : block - covered;
    or_shifted(from, words, more * stride, to);
    uint64_t* const result = to;
    to = from;
    from = result;
    covered += more;
  }
}

void dilate(const BlockMaps& maps, const uint32_t* seeds, int64_t first_seed, uint64_t* scratch,
            uint64_t* out) {
  const int64_t bits = maps.count * elements_of_map(maps);
  const int64_t words = words_of_bits(bits);
  uint64_t* from = scratch;
  uint64_t* to = scratch + padded_words(maps);
  __builtin_memset(scratch, 0, scratch_words(maps) * sizeof *scratch);
  place_seeds(maps, seeds, first_seed, from);
  dilate_along(maps.block[2], 1, words, from, to);
  dilate_along(maps.block[1], maps.size[2], words, from, to);
  dilate_along(maps.block[0], maps.size[2] * maps.size[1], words, from, to);
  for (int64_t w = 0; w < words; ++w) out[w] = ~from[w];
  if (bits % 64 != 0) out[words - 1] &= (uint64_t{1} << bits % 64) - 1;
}

int64_t count_bits(const uint64_t* bits, int64_t first, int64_t count) {
  const int64_t end = first + count;
  int64_t sum = 0;
  for (int64_t w = first / 64; w * 64 < end; ++w) {
    uint64_t word = bits[w];
    if (w * 64 < first) word &= ~uint64_t{0} << first % 64;
    if (end - w * 64 < 64) word &= (uint64_t{1} << end % 64) - 1;
    sum += __builtin_popcountll(word);
  }
  return sum;
}

}  // namespace

static Kernels make_kernels(const Kernels*) { return {scratch_words, dilate, count_bits}; }

}  // namespace fused_dropout::drop_block

FUSED_DROPOUT_INSTANTIATE(fused_dropout::drop_block::Kernels);
