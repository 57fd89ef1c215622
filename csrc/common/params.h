// Plain descriptions of the work, shared by the CPU and CUDA kernels: no torch, no owning pointers,
// no functions (the CPU bodies compile those once per instruction set).
#pragma once

#include <cstdint>

namespace fused_dropout {

constexpr int kGroupColumns = 128;               // elements that share one Philox call per digit
constexpr int kGroupWords = kGroupColumns / 32;  // 32-bit words of a packed group
constexpr int kGroupBytes = kGroupColumns / 8;
constexpr int kDefaultDigits = 16;
constexpr int kSeedDigits = 32;  // DropBlock's seeds are rare: 16 would round their rate coarsely

enum MaskStream : uint32_t { kStreamMask = 0, kStreamBias = 1, kStreamNoise = 2 };

constexpr int kNoiseWords = 4;  // elements that share one Philox call of noise (noise.h)

// Everything the kernels need to draw one mask. digits == 0 means that nothing is random: T was 0
// or 2^digits, and `keep_all` tells which.
struct MaskRule {
  uint32_t key[2];
  uint32_t offset[2];
  uint32_t slot;       // counter word 1 without its digit and group: 1 << 31 | stream << 24
  uint32_t digits;     // digits that can decide, 0..32
  uint32_t threshold;  // the `digits` leading digits of T
  bool keep_all;
};

enum class ScalarType { kFloat32, kBFloat16, kFloat16, kFloat64 };

// kGelu is x Phi(x), kGeluTanh its approximation by tanh.
enum class Activation { kNone, kRelu, kGelu, kGeluTanh, kSilu };

// What dropout does to an element x: scale * x + shift if it is kept, else fill.
struct AffineMap {
  double scale;
  double shift;
  double fill;
};

// One dimension of a tensor whose elements are `mask_stride` bits of its mask apart, 0 where they
// share one.
struct MaskedDim {
  int64_t size;
  int64_t mask_stride;
};

// The maps of a DropBlock mask, one after another: a bit for each element.
struct BlockMaps {
  int64_t count;
  int64_t size[3];   // depth, height, width; 1 where the input has no such dimension
  int64_t block[3];  // the sides of a block, 1 <= block <= size
};

// A matrix of any strides, counted in elements.
struct MatrixView {
  const void* data;
  int64_t row_stride;
  int64_t col_stride;
};

// Stored masks round out_features up to this, so that a drawing kernel never cuts a vector of
// groups.
constexpr int64_t kStoredOutsMultiple = 8;

// One DropConnect layer: rows of input against weight [out_features, in_features]. Row n uses mask
// n / rows_per_mask; element (o, i) of mask m is element (m * out_features + o, i) of the
// contract's bit matrix.
struct DropConnectProblem {
  MaskRule rule;
  int64_t rows;
  int64_t in_features;
  int64_t out_features;
  int64_t rows_per_mask;
  double scale;               // every product is multiplied by it: 1/q, or 1 without rescaling
  const uint32_t* mask_bits;  // stored masks [groups][masks][outs rounded up][4 words], or null
};

}  // namespace fused_dropout
