// Mask bits of many output features, turned so that those of one column are neighbours.
#pragma once

#include "prelude.h"

namespace fused_dropout {
namespace {

constexpr int kTurnedRows = 64;  // rows that are transposed at a time
constexpr int kRowBytes = 16;    // of a row: the bits of a group of 128 columns

// Exchanges, in every word, the bits of `places` with those `distance` above them.
FUSED_DROPOUT_INLINE void swap_bits(uint64_t (&words)[kRowBytes], int distance, uint64_t places) {
  for (uint64_t& word : words) {
    const uint64_t differ = (word ^ (word >> distance)) & places;
    word ^= differ ^ (differ << distance);
  }
}

// Exchanges the bits of `places` in `b` with those `distance` above them in `a`.
FUSED_DROPOUT_INLINE void swap_bits(uint64_t (&a)[kRowBytes], uint64_t (&b)[kRowBytes],
                                    int distance, uint64_t places) {
  for (int k = 0; k < kRowBytes; ++k) {
    const uint64_t differ = ((a[k] >> distance) ^ b[k]) & places;
    b[k] ^= differ;
    a[k] ^= differ << distance;
  }
}

// Bit r of columns[c * stride] = bit c of row r, for 64 rows of 128 bits. All loops are over a
// row's bytes, which vectors hold side by side: some 1000 operations on words where there are 8 to
// a vector, 2 for every 16 bits.
FUSED_DROPOUT_INLINE void transpose_bits(const uint8_t* rows, uint64_t* columns, int64_t stride) {
  // words[e][b]: at first byte b of rows 8e ... 8e + 7; then byte c has the bits of these rows in
  // column 8b + c.
  uint64_t words[8][kRowBytes];
  for (int eight = 0; eight < 8; ++eight) {
    for (int b = 0; b < kRowBytes; ++b) {
      words[eight][b] = 0;
      for (int r = 0; r < 8; ++r) {
        words[eight][b] |= static_cast<uint64_t>(rows[(8 * eight + r) * kRowBytes + b]) << 8 * r;
      }
    }
    swap_bits(words[eight], 7, 0x00AA00AA00AA00AA);
    swap_bits(words[eight], 14, 0x0000CCCC0000CCCC);
    swap_bits(words[eight], 28, 0x00000000F0F0F0F0);
  }
  // Then words[c][b] has the bits of all rows in column 8b + c.
  constexpr uint64_t kPlaces[] = {0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF, 0x00000000FFFFFFFF};
  for (int step = 0; step < 3; ++step) {
    for (int k = 0; k < 8; ++k) {
      const int other = k | 1 << step;
      if (other != k) swap_bits(words[k], words[other], 8 << step, kPlaces[step]);
    }
  }
  for (int b = 0; b < kRowBytes; ++b) {
    for (int c = 0; c < 8; ++c) columns[(8 * b + c) * stride] = words[c][b];
  }
}

}  // namespace
}  // namespace fused_dropout
