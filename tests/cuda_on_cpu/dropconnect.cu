// Entries of the DropConnect kernels, one for each product and dtype. `sizes` is a Layer, and like
// every array in device memory, where only kernels can read it.
#include "../../csrc/cuda/dropconnect.cuh"
#include "device_memory.h"
#include "entries.h"
#include "linear_layer.h"

namespace fused_dropout::dropconnect {
namespace {

// `bits_out` may be a word that says that no bits are wanted.
template <class T>
int forward(const int64_t* rng_state, const Layer* sizes, double p, double scale,
            const uint32_t* mask_bits, const T* input, const T* weight, const T* bias,
            uint32_t* bits_out, T* output) {
  const Layer layer = on_host(sizes);
  Forward<T> pass(problem_of(layer, p, scale, stored_masks(mask_bits)),
                  operand(layer, input, layer.in_features),
                  operand(layer, weight, layer.in_features), layer.cut);
  const Workspace<Real<T>> workspace(pass.workspace());
  return pass.launch(rng_from_state(rng_state), {bias, layer.step}, workspace.data(), output,
                     const_cast<uint32_t*>(stored_masks(bits_out)), nullptr);
}

// A result that is not wanted is one element long.
template <class T>
int gradients(const int64_t* rng_state, const Layer* sizes, double p, double scale,
              const uint32_t* mask_bits, const T* input, const T* weight, const T* grad,
              bool wants_d_input, T* d_input, bool wants_d_weight, T* d_weight) {
  const Layer layer = on_host(sizes);
  const MatrixView of_input = operand(layer, input, layer.in_features);
  const MatrixView of_weight = operand(layer, weight, layer.in_features);
  Gradients<T> pass(problem_of(layer, p, scale, stored_masks(mask_bits)),
                    operand(layer, grad, layer.out_features), wants_d_input ? &of_weight : nullptr,
                    wants_d_weight ? &of_input : nullptr, layer.cut);
  const Workspace<Real<T>> workspace(pass.workspace());
  return pass.launch(rng_from_state(rng_state), workspace.data(), wants_d_input ? d_input : nullptr,
                     wants_d_weight ? d_weight : nullptr, nullptr);
}

template <class T>
int bias_grad(const int64_t* rng_state, const Layer* sizes, double p, double scale, const T* grad,
              T* d_bias) {
  const Layer layer = on_host(sizes);
  const MaskRule rule = make_mask_rule(0, 0, kStreamBias, p, kDefaultDigits);
  const Slices slices = bias_slices(layer.rows, layer.out_features, layer.cut);
  const Workspace<Real<T>> sums(slice_count(slices) * layer.out_features);
  return launch_bias_grad<T>(
      rule, rng_from_state(rng_state), operand(layer, grad, layer.out_features), layer.rows,
      layer.out_features, layer.rows_per_mask, slices, scale, sums.data(), d_bias, nullptr);
}

int store_masks(const int64_t* rng_state, const Layer* sizes, double p, int64_t first_mask,
                uint32_t* bits) {
  return launch_store_masks(problem_of(on_host(sizes), p, 1, nullptr), rng_from_state(rng_state),
                            first_mask, bits, nullptr);
}

CUDA_ON_CPU_ENTRY(store_masks);

// The dynamic shared memory of the kernels that ask for any, for sums in float and in double.
int shared_bytes(int64_t* out) {
  const int64_t bytes[] = {sizeof(ForwardShared<float>), sizeof(GradientShared<float>),
                           sizeof(ForwardShared<double>), sizeof(GradientShared<double>)};
  copy_to_device(out, bytes, sizeof bytes);
  return 0;
}

CUDA_ON_CPU_ENTRY(shared_bytes);

template <class T>
struct Entries {
  explicit Entries(const std::string& dtype)
      : forward_entry("forward_" + dtype, forward<T>),
        gradients_entry("gradients_" + dtype, gradients<T>),
        d_bias_entry("d_bias_" + dtype, bias_grad<T>) {}

  worker::Registration forward_entry, gradients_entry, d_bias_entry;
};

const Entries<float> float32_entries("float32");
const Entries<__nv_bfloat16> bfloat16_entries("bfloat16");
const Entries<__half> float16_entries("float16");
const Entries<double> float64_entries("float64");

}  // namespace
}  // namespace fused_dropout::dropconnect
