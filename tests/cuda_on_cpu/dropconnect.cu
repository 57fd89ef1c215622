// Entries of the DropConnect kernels, one for each product and dtype. `sizes` is a Layer, and like
// every array in device memory, where only kernels can read it.
#include "../../csrc/cuda/dropconnect.cuh"
#include "device_memory.h"
#include "entries.h"
#include "linear_layer.h"

namespace fused_dropout::dropconnect {
namespace {

template <class T>
int forward(const int64_t* rng_state, const Layer* sizes, double p, double scale,
            const uint32_t* mask_bits, const T* input, const T* weight, const T* bias,
            const uint32_t* bias_bits, T* output) {
  const Layer layer = on_host(sizes);
  const DropConnectProblem problem = problem_of(layer, p, scale, stored_masks(mask_bits));
  const Workspace<Real<T>> workspace(forward_slices(problem, layer.cut) * problem.rows *
                                     problem.out_features);
  return launch_forward<T>(problem, rng_from_state(rng_state),
                           operand(layer, input, problem.in_features),
                           operand(layer, weight, problem.in_features),
                           {bias, layer.step, bias_bits, problem.rows_per_mask}, workspace.data(),
                           output, nullptr, layer.cut);
}

template <class T, bool kOutsAreResults>
int outer(const int64_t* rng_state, const Layer* sizes, double p, double scale,
          const uint32_t* mask_bits, const T* panel, const T* grad, T* result) {
  const Layer layer = on_host(sizes);
  const DropConnectProblem problem = problem_of(layer, p, scale, stored_masks(mask_bits));
  const int64_t results = kOutsAreResults ? problem.out_features : problem.rows;
  const Workspace<Real<T>> workspace(outer_slices<kOutsAreResults>(problem, layer.cut) * results *
                                     problem.in_features);
  return launch_outer<T, kOutsAreResults>(
      problem, rng_from_state(rng_state), operand(layer, panel, problem.in_features),
      operand(layer, grad, problem.out_features), workspace.data(), result, nullptr, layer.cut);
}

template <class T>
int bias_grad(const Layer* sizes, double scale, const uint32_t* bias_bits, const T* grad,
              T* d_bias) {
  const Layer layer = on_host(sizes);
  return launch_bias_grad<T>(operand(layer, grad, layer.out_features), layer.rows,
                             layer.out_features, layer.rows_per_mask, bias_bits, scale, d_bias,
                             nullptr);
}

int store_masks(const int64_t* rng_state, const Layer* sizes, double p, uint32_t* bits) {
  return launch_store_masks(problem_of(on_host(sizes), p, 1, nullptr), rng_from_state(rng_state),
                            bits, nullptr);
}

CUDA_ON_CPU_ENTRY(store_masks);

// The dynamic shared memory of the kernels that ask for any, for sums in float and in double.
int shared_bytes(int64_t* out) {
  const int64_t bytes[] = {sizeof(ForwardShared<float>), sizeof(OuterShared<float>),
                           sizeof(ForwardShared<double>), sizeof(OuterShared<double>)};
  copy_to_device(out, bytes, sizeof bytes);
  return 0;
}

CUDA_ON_CPU_ENTRY(shared_bytes);

template <class T>
struct Entries {
  explicit Entries(const std::string& dtype)
      : forward_entry("forward_" + dtype, forward<T>),
        d_input_entry("d_input_" + dtype, outer<T, false>),
        d_weight_entry("d_weight_" + dtype, outer<T, true>),
        d_bias_entry("d_bias_" + dtype, bias_grad<T>) {}

  worker::Registration forward_entry, d_input_entry, d_weight_entry, d_bias_entry;
};

const Entries<float> float32_entries("float32");
const Entries<__nv_bfloat16> bfloat16_entries("bfloat16");
const Entries<__half> float16_entries("float16");
const Entries<double> float64_entries("float64");

}  // namespace
}  // namespace fused_dropout::dropconnect
