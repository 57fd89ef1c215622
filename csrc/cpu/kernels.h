// What the per-ISA translation units offer to the rest: one table of functions per instruction set.
// The bodies are templates compiled once per ISA (isa_*.cpp); dispatch.cpp picks a table at run
// time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/params.h"

namespace fused_dropout {

constexpr int kScalarTypes = 4;  // in the order of ScalarType

// Half-open range of rows, output features or groups.
struct Range {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

struct ForwardArgs {
  DropConnectProblem problem;
  MatrixView input;   // [rows, in_features]
  MatrixView weight;  // [out_features, in_features]
  const void* bias;   // [out_features] or null
  int64_t bias_stride;
  const uint32_t* bias_bits;  // [masks, ceil(out_features / 128)] groups, with a bias
  void* output;               // [rows, out_features], contiguous
};

struct BackwardArgs {
  DropConnectProblem problem;
  MatrixView grad_output;  // [rows, out_features]
  MatrixView input;        // read for d_weight only
  MatrixView weight;       // read for d_input only
  void* d_input;           // [rows, in_features], contiguous, or null
  void* d_weight;          // [out_features, in_features], contiguous, or null
};

struct BiasGradArgs {
  MatrixView grad_output;  // [rows, out_features]
  int64_t rows;
  int64_t out_features;
  int64_t rows_per_mask;
  double scale;
  const uint32_t* bias_bits;
  void* d_bias;  // [out_features], contiguous
};

// Upper bounds of the blocks that one call of a kernel works on. Results do not depend on how the
// work is cut, so the caller is free to cut it by the number of threads.
constexpr int64_t kForwardBlockRows = 96;
constexpr int64_t kForwardBlockOuts = 128;

struct Kernels {
  const char* isa;

  // Packed keep bits of groups first, first + stride, ...: 4 words each, contiguous in `out`.
  void (*draw_groups)(const MaskRule& rule, uint64_t first, uint64_t stride, int64_t count,
                      uint32_t* out);
  // The mask as bytes 0 and 1: `rows` whole rows of `cols` columns whose groups count up from
  // `first`, contiguous in `out`.
  void (*draw_bytes)(const MaskRule& rule, uint64_t first, int64_t rows, int64_t cols,
                     uint8_t* out);

  size_t (*forward_scratch)(ScalarType type);
  void (*forward[kScalarTypes])(const ForwardArgs& args, Range rows, Range outs, void* scratch);

  // One group of 128 columns, for the given rows and output features.
  size_t (*backward_scratch)(ScalarType type, Range outs);
  void (*backward[kScalarTypes])(const BackwardArgs& args, int64_t group, Range rows, Range outs,
                                 void* scratch);

  // One group of 128 output features.
  void (*bias_grad[kScalarTypes])(const BiasGradArgs& args, int64_t group);
};

const Kernels& plain_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace fused_dropout
