// What the kernels of dropconnect offer: simd/ops/dropconnect.h fills the table, dropconnect.cpp
// calls it.
#pragma once

#include <cstddef>

#include "kernel_types.h"

namespace fused_dropout::dropconnect {

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
constexpr int64_t kForwardBlockRows = 144;
constexpr int64_t kForwardBlockOuts = 128;

struct Kernels {
  size_t (*forward_scratch)(ScalarType type);
  void (*forward[kScalarTypes])(const ForwardArgs& args, Range rows, Range outs, void* scratch);

  // One group of 128 columns, for the given rows and output features.
  size_t (*backward_scratch)(ScalarType type, Range outs);
  void (*backward[kScalarTypes])(const BackwardArgs& args, int64_t group, Range rows, Range outs,
                                 void* scratch);

  // One group of 128 output features.
  void (*bias_grad[kScalarTypes])(const BiasGradArgs& args, int64_t group);
};

}  // namespace fused_dropout::dropconnect
