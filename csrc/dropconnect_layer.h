// The DropConnect operators' arguments, checked and described once for the CPU and CUDA bindings.
#pragma once

#include <vector>

#include "checks.h"

namespace fused_dropout {

struct Layer {
  int64_t rows, in_features, out_features, rows_per_mask, masks;
  double p;
  bool rescale;
  int64_t work() const { return rows * in_features * out_features; }
};

inline Layer make_layer(int64_t rows, int64_t in_features, int64_t out_features,
                        int64_t rows_per_mask, double p, bool rescale) {
  TORCH_CHECK_VALUE(rows_per_mask >= 1, "rows_per_mask must be at least 1, got ", rows_per_mask);
  const int64_t masks = ceil_div(rows, rows_per_mask);
  check_mask_arguments(p, masks * out_features, in_features, kStreamMask, kDefaultDigits);
  return {rows, in_features, out_features, rows_per_mask, masks, p, rescale};
}

// The layer of a forward call; every operand must fit `input`.
inline Layer layer_of_forward(const at::Tensor& input, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias, int64_t rows_per_mask,
                              double p, bool rescale) {
  TORCH_CHECK(input.dim() == 2 && weight.dim() == 2, "input and weight must be matrices, got ",
              input.sizes(), " and ", weight.sizes());
  const Layer layer =
      make_layer(input.size(0), input.size(1), weight.size(0), rows_per_mask, p, rescale);
  check_operand(weight, "weight", {layer.out_features, layer.in_features}, input);
  if (bias.has_value()) check_operand(*bias, "bias", {layer.out_features}, input);
  return layer;
}

// The layer of a backward call, which has an input, a weight or both.
inline Layer layer_of_backward(const at::Tensor& grad_output, const at::Tensor* input,
                               const at::Tensor* weight, int64_t rows_per_mask, double p,
                               bool rescale) {
  TORCH_CHECK(grad_output.dim() == 2 && (input == nullptr || input->dim() == 2) &&
                  (weight == nullptr || weight->dim() == 2),
              "grad_output, input and weight must be matrices");
  const int64_t in_features = (input != nullptr ? input : weight)->size(1);
  const Layer layer =
      make_layer(grad_output.size(0), in_features, grad_output.size(1), rows_per_mask, p, rescale);
  if (weight != nullptr) {
    check_operand(*weight, "weight", {layer.out_features, in_features}, grad_output);
  }
  if (input != nullptr) check_operand(*input, "input", {layer.rows, in_features}, grad_output);
  return layer;
}

inline double scale_of(const MaskRule& rule, bool rescale) {
  if (!rescale) return 1.0;
  return rule.keep_rate > 0 ? 1.0 / rule.keep_rate : 0.0;  // q = 0: nothing is kept, nor scaled
}

// Stored masks: [groups][masks][out_features rounded up][words].
inline std::vector<int64_t> stored_shape(const Layer& layer) {
  return {group_count(layer.in_features), layer.masks, stored_outs(layer.out_features),
          kGroupWords};
}

inline DropConnectProblem make_problem(const Layer& layer, const MaskRule& rule,
                                       const std::optional<at::Tensor>& mask_bits,
                                       const at::Device& device) {
  const uint32_t* bits = nullptr;
  if (mask_bits.has_value()) {
    TORCH_CHECK(mask_bits->scalar_type() == at::kInt && mask_bits->is_contiguous() &&
                    mask_bits->device() == device &&
                    mask_bits->sizes() == at::IntArrayRef(stored_shape(layer)),
                "mask_bits must be a contiguous int32 tensor ", stored_shape(layer), " on ", device,
                ", got ", mask_bits->scalar_type(), " ", mask_bits->sizes(), " on ",
                mask_bits->device());
    bits = static_cast<const uint32_t*>(mask_bits->const_data_ptr());
    constexpr size_t kAlignment = kGroupWords * sizeof(uint32_t);  // groups are read whole
    TORCH_CHECK_VALUE(reinterpret_cast<uintptr_t>(bits) % kAlignment == 0,
                      "mask_bits must start at an address that is a multiple of ", kAlignment,
                      " bytes, got one with remainder ",
                      reinterpret_cast<uintptr_t>(bits) % kAlignment,
                      " (a view into a larger tensor: clone it)");
  }
  return {rule,
          layer.rows,
          layer.in_features,
          layer.out_features,
          layer.rows_per_mask,
          scale_of(rule, layer.rescale),
          bits};
}

}  // namespace fused_dropout
