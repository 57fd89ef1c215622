// Bits packed into 32-bit words, the first in the lowest place, read and written 64 at a time.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace fused_dropout {
namespace {

// The 64 bits from bit `first` on; it reads 12 bytes from the first bit's word on.
FUSED_DROPOUT_INLINE uint64_t bits_from(const uint32_t* words, uint64_t first) {
  const uint32_t* const word = words + first / 32;
  uint64_t low;
  __builtin_memcpy(&low, word, sizeof low);
  const int shift = static_cast<int>(first % 32);
  const uint64_t high = word[2];
  return low >> shift | high << 1 << (63 - shift);  // shifting by 64 is not defined
}

// The 32 bits from bit `first` on; it reads 8 bytes from the first bit's word on.
FUSED_DROPOUT_INLINE uint32_t word_from(const uint32_t* words, uint64_t first) {
  uint64_t both;
  __builtin_memcpy(&both, words + first / 32, sizeof both);
  return static_cast<uint32_t>(both >> (first % 32));
}

// The lowest `count` bits, 1 to 64 of them.
FUSED_DROPOUT_INLINE uint64_t low_ones(int count) { return ~uint64_t{0} >> (64 - count); }

FUSED_DROPOUT_INLINE bool bit_at(const uint32_t* words, uint64_t k) {
  return words[k / 32] >> (k % 32) & 1;
}

// Bits first, first + 1, ... become those of `value` where they were 0.
FUSED_DROPOUT_INLINE void put_bits(uint64_t* out, int64_t first, uint64_t value) {
  const int shift = static_cast<int>(first % 64);
  out[first / 64] |= value << shift;
  if (shift != 0) out[first / 64 + 1] |= value >> (64 - shift);
}

// Writes bits one after the other, from the first of `out` on. finish() writes what is left.
class BitWriter {
 public:
  explicit BitWriter(uint32_t* out) : out_(out) {}

  // The lowest `count` of `bits`, 1 to 64; the others are 0.
  void append(uint64_t bits, int count) {
    pending_ |= bits << used_;
    used_ += count;
    if (used_ < 64) return;
    put();
    used_ -= 64;
    pending_ = used_ == 0 ? 0 : bits >> (count - used_);
  }

  void finish() {
    if (used_ > 0) put();
  }

 private:
  void put() {
    __builtin_memcpy(out_, &pending_, sizeof pending_);
    out_ += 2;
  }

  uint32_t* out_;
  uint64_t pending_ = 0;
  int used_ = 0;
};

}  // namespace
}  // namespace fused_dropout
