// What the entries of the DropConnect kernels share: a layer, and its operands in memory.
#pragma once

#include "../../csrc/common/mask.h"

namespace fused_dropout::dropconnect {
namespace {

struct Layer {
  int64_t rows;
  int64_t in_features;
  int64_t out_features;
  int64_t rows_per_mask;
  int64_t cut;   // blocks to aim at, or masked weights that are made at a time
  int64_t step;  // from an operand's element to the next of its row; rows follow one another
};

DropConnectProblem problem_of(const Layer& layer, double p, double scale,
                              const uint32_t* mask_bits) {
  const MaskRule rule = make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits);
  return {rule,  layer.rows, layer.in_features, layer.out_features, layer.rows_per_mask,
          scale, mask_bits};
}

MatrixView operand(const Layer& layer, const void* data, int64_t cols) {
  return {data, cols * layer.step, layer.step};
}

}  // namespace
}  // namespace fused_dropout::dropconnect
