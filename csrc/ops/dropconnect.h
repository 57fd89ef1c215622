// The DropConnect operators, on matrices: input [rows, in], weight [out, in], grad_output [rows,
// out]. Row n uses mask n / rows_per_mask. mask_bits are the stored masks, or None to draw them
// again; dropconnect_linear_with_bits returns the output and the masks, for backward to read. Every
// product is multiplied by scale. dropconnect_mask_bits draws `masks` masks from first_mask on.
#pragma once

#include <vector>

#include "checks.h"

namespace fused_dropout::dropconnect {

constexpr const char* kSchemas[] = {
    "dropconnect_mask_bits(Tensor weight, Tensor rng_state, SymInt masks, float p,"
    " SymInt first_mask=0) -> Tensor",
    "dropconnect_linear(Tensor input, Tensor weight, Tensor? bias, Tensor rng_state,"
    " Tensor? mask_bits, float p, SymInt rows_per_mask, float scale) -> Tensor",
    "dropconnect_linear_with_bits(Tensor input, Tensor weight, Tensor? bias, Tensor rng_state,"
    " float p, SymInt rows_per_mask, float scale) -> (Tensor, Tensor)",
    "dropconnect_linear_d_input(Tensor grad_output, Tensor weight, Tensor rng_state,"
    " Tensor? mask_bits, float p, SymInt rows_per_mask, float scale) -> Tensor",
    "dropconnect_linear_d_weight(Tensor grad_output, Tensor input, Tensor rng_state,"
    " Tensor? mask_bits, float p, SymInt rows_per_mask, float scale) -> Tensor",
    "dropconnect_linear_d_both(Tensor grad_output, Tensor input, Tensor weight,"
    " Tensor rng_state, Tensor? mask_bits, float p, SymInt rows_per_mask, float scale)"
    " -> (Tensor, Tensor)",
    "dropconnect_linear_d_bias(Tensor grad_output, Tensor rng_state, float p,"
    " SymInt rows_per_mask, float scale) -> Tensor",
};

struct Layer {
  int64_t rows, in_features, out_features, rows_per_mask, masks;
  double p;
  double scale;
  int64_t work() const { return rows * in_features * out_features; }
};

inline Layer make_layer(int64_t rows, int64_t in_features, int64_t out_features,
                        int64_t rows_per_mask, double p, double scale) {
  FUSED_DROPOUT_CHECK(rows_per_mask >= 1, "rows_per_mask must be at least 1, got ", rows_per_mask);
  const int64_t masks = ceil_div(rows, rows_per_mask);
  check_probability(p);
  check_mask_size(masks * out_features, in_features);
  return {rows, in_features, out_features, rows_per_mask, masks, p, scale};
}

// What `masks` masks of a weight are drawn for; those before `first_mask` must have numbers too.
inline Layer layer_of_masks(const Tensor& weight, int64_t masks, double p, int64_t first_mask) {
  check_matrix(weight, "weight");
  constexpr int64_t kMostRows = int64_t{1} << 48;
  const int64_t out_features = weight.size(0);
  const int64_t most = out_features == 0 ? kMostRows : kMostRows / out_features;
  FUSED_DROPOUT_CHECK(
      masks >= 0 && first_mask >= 0 && masks <= most && first_mask <= most - masks,
      "masks and first_mask must be at least 0, and the sum of both times out_features at most "
      "2^48, got ",
      masks, " masks from ", first_mask, " on of ", out_features, " output features");
  check_mask_size((first_mask + masks) * out_features, weight.size(1));
  return make_layer(masks, weight.size(1), out_features, 1, p, 1);
}

// The layer of a forward call; every operand must fit `input`.
inline Layer layer_of_forward(const Tensor& input, const Tensor& weight,
                              const std::optional<Tensor>& bias, int64_t rows_per_mask, double p,
                              double scale) {
  FUSED_DROPOUT_CHECK(input.dim() == 2 && weight.dim() == 2,
                      "input and weight must be matrices, got ", input.sizes(), " and ",
                      weight.sizes());
  const Layer layer =
      make_layer(input.size(0), input.size(1), weight.size(0), rows_per_mask, p, scale);
  check_operand(weight, "weight", {layer.out_features, layer.in_features}, input);
  if (bias.has_value()) check_operand(*bias, "bias", {layer.out_features}, input);
  return layer;
}

// The layer of a backward call, which has an input, a weight or both.
inline Layer layer_of_backward(const Tensor& grad_output, const Tensor* input, const Tensor* weight,
                               int64_t rows_per_mask, double p, double scale) {
  FUSED_DROPOUT_CHECK(grad_output.dim() == 2 && (input == nullptr || input->dim() == 2) &&
                          (weight == nullptr || weight->dim() == 2),
                      "grad_output, input and weight must be matrices");
  const int64_t in_features = (input != nullptr ? input : weight)->size(1);
  const Layer layer =
      make_layer(grad_output.size(0), in_features, grad_output.size(1), rows_per_mask, p, scale);
  if (weight != nullptr) {
    check_operand(*weight, "weight", {layer.out_features, in_features}, grad_output);
  }
  if (input != nullptr) {
    check_operand(*input, "input", {layer.rows, in_features}, grad_output);
  }
  return layer;
}

// Stored masks: [groups][masks][out_features rounded up][words].
inline std::vector<int64_t> stored_shape(const Layer& layer) {
  return {group_count(layer.in_features), layer.masks, stored_outs(layer.out_features),
          kGroupWords};
}

inline DropConnectProblem make_problem(const Layer& layer, const MaskRule& rule,
                                       const std::optional<Tensor>& mask_bits, Device device) {
  const uint32_t* bits = nullptr;
  if (mask_bits.has_value()) {
    const std::vector<int64_t> shape = stored_shape(layer);
    FUSED_DROPOUT_CHECK(
        dtype_of(*mask_bits) == dtypes().int32 && mask_bits->is_contiguous() &&
            device_of(*mask_bits) == device && same_sizes(mask_bits->sizes(), shape),
        "mask_bits must be a contiguous int32 tensor ", Sizes(shape), " on ", device, ", got ",
        DtypeName{dtype_of(*mask_bits)}, " ", mask_bits->sizes(), " on ", device_of(*mask_bits));
    bits = data_of<uint32_t>(*mask_bits);
    constexpr size_t kAlignment = kGroupWords * sizeof(uint32_t);  // groups are read whole
    FUSED_DROPOUT_CHECK(reinterpret_cast<uintptr_t>(bits) % kAlignment == 0,
                        "mask_bits must start at an address that is a multiple of ", kAlignment,
                        " bytes, got one with remainder ",
                        reinterpret_cast<uintptr_t>(bits) % kAlignment,
                        " (a view into a larger tensor: clone it)");
  }
  return {rule,        layer.rows, layer.in_features, layer.out_features, layer.rows_per_mask,
          layer.scale, bits};
}

}  // namespace fused_dropout::dropconnect
