// Launches of dropout of bfloat16 tensors and of drawing masks, as ../../../csrc/cuda/dropout.cu
// and mask.cu make them.
#include "../../../csrc/cuda/dropout.cuh"
#include "memory.h"

namespace fused_dropout {
namespace {

using T = __nv_bfloat16;

RngSource rng() { return rng_from_state(memory<int64_t>("rng_state", 2)); }

MaskRule rule_of(double p) { return make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits); }

dropout::Operands<T> operands_of(int64_t count, bool residual) {
  return {memory<T>("input", count), residual ? memory<T>("residual", count) : nullptr,
          memory<T>("result", count), count};
}

uint32_t* draw_bits(double p, int64_t count, int* error) {
  const int64_t groups = group_count(count);
  uint32_t* const bits = memory<uint32_t>("mask_bits", groups * kGroupWords);
  *error = launch_draw_groups(rule_of(p), rng(), 0, 1, groups, bits, nullptr);
  return bits;
}

// Elements whose `bits` bits lie as the dimensions say.
int masked(double p, const MaskedDim* dims, int dim_count, int64_t bits, int64_t count) {
  const MaskedDims all = make_masked_dims(dims, dim_count);
  const AffineMap map = {1 / (1 - p), 0, 0};
  const dropout::Operands<T> operands = operands_of(count, false);
  if (dropout::draws_by_tile(all, count)) {
    return dropout::launch_shared<T>(rule_of(p), rng(), all, map, operands, nullptr);
  }
  if (dropout::draws_by_columns(all, count)) {
    return dropout::launch_columns<T>(rule_of(p), rng(), all, map, operands, nullptr);
  }
  int error = 0;
  const uint32_t* const drawn = draw_bits(p, bits, &error);
  if (error) return error;
  return dropout::launch_masked<T>(drawn, all, dropout::one_map<T>(map), operands, nullptr);
}

}  // namespace

extern "C" {

int dropout_linear(double p, int64_t count, int64_t residual) {
  return dropout::launch_linear<T>(rule_of(p), rng(), {1 / (1 - p), 0, 0},
                                   operands_of(count, residual != 0), nullptr);
}

// [images, channels, pixels] in memory format channels_last: the mask is that of the contiguous
// tensor.
int dropout_channels_last(double p, int64_t images, int64_t channels, int64_t pixels) {
  const MaskedDim dims[] = {{images, channels * pixels}, {pixels, 1}, {channels, pixels}};
  const int64_t count = images * channels * pixels;
  return masked(p, dims, 3, count, count);
}

// A bit for each channel of [images, channels, pixels].
int dropout_channels(double p, int64_t images, int64_t channels, int64_t pixels) {
  const MaskedDim dims[] = {{images * channels, 1}, {pixels, 0}};
  return masked(p, dims, 2, images * channels, images * channels * pixels);
}

// A bit for each element.
int draw_packed_bits(double p, int64_t count) {
  int error = 0;
  draw_bits(p, count, &error);
  return error;
}

}  // extern "C"
}  // namespace fused_dropout
