// The operators of masked weights: weight [out, in] under `masks` masks, [masks, out, in], and the
// sum of such a stack under the same masks. Each is the other's gradient. The masks are those of
// DropConnect: element (o, i) of mask k is element (k * out + o, i) of the contract's bit matrix.
// mask_bits are the stored masks, or None to draw them.
#pragma once

#include "dropconnect.h"

namespace fused_dropout::mask_weight {

using dropconnect::Layer;

constexpr const char* kSchemas[] = {
    "mask_weight(Tensor weight, Tensor rng_state, Tensor? mask_bits, float p, SymInt masks,"
    " float scale) -> Tensor",
    "mask_weight_sum(Tensor stack, Tensor rng_state, Tensor? mask_bits, float p, SymInt masks,"
    " float scale) -> Tensor",
};

// One row for each mask.
inline Layer make_layer(int64_t masks, int64_t out_features, int64_t in_features, double p,
                        double scale) {
  constexpr int64_t kMostRows = int64_t{1} << 48;
  FUSED_DROPOUT_CHECK(
      masks >= 0 && masks <= kMostRows && (out_features == 0 || masks <= kMostRows / out_features),
      "masks must be at least 0, and masks times out_features at most 2^48, got ", masks,
      " masks of ", out_features, " output features");
  return dropconnect::make_layer(masks, in_features, out_features, 1, p, scale);
}

inline Layer layer_of_weight(const Tensor& weight, double p, int64_t masks, double scale) {
  check_matrix(weight, "weight");
  kernel_type(weight);
  return make_layer(masks, weight.size(0), weight.size(1), p, scale);
}

inline Layer layer_of_stack(const Tensor& stack, double p, int64_t masks, double scale) {
  FUSED_DROPOUT_CHECK(stack.dim() == 3 && stack.size(0) == masks,
                      "stack must have shape [masks, out_features, in_features] with masks = ",
                      masks, ", got ", stack.sizes());
  kernel_type(stack);
  return make_layer(masks, stack.size(1), stack.size(2), p, scale);
}

}  // namespace fused_dropout::mask_weight
