// Entries of DropConnect by matrix products, one for each product and dtype. A kernel here stands
// in for the library's product, and adds 0 * NaN as that does. `sizes` is a Layer, and like every
// array in device memory, where only kernels can read it.
#include "../../csrc/cuda/dropconnect_shared.cuh"

#include "device_memory.h"
#include "entries.h"
#include "linear_layer.h"

namespace fused_dropout::dropconnect {
namespace {

// out = a b for a batch of matrices.
template <class T>
__global__ void __launch_bounds__(kElementThreads)
    multiply_kernel(Matrices a, Matrices b, Matrices out) {
  const int64_t count = out.count * out.rows * out.cols;
  for (int64_t k = thread_in_grid(); k < count; k += threads_in_grid()) {
    const int64_t which = k / (out.rows * out.cols);
    const int64_t row = k / out.cols % out.rows;
    const int64_t col = k % out.cols;
    const T* const x = static_cast<const T*>(a.data) + which * a.stride + row * a.row_stride;
    const T* const y = static_cast<const T*>(b.data) + which * b.stride + col * b.col_stride;
    Real<T> sum = 0;
    for (int64_t first = 0; first < a.cols; first += kGroupColumns) {
      Real<T> subtotal = 0;  // so that rounding errors stay small
      for (int64_t i = first; i < a.cols && i < first + kGroupColumns; ++i) {
        subtotal = fma(widen(x[i * a.col_stride]), widen(y[i * b.row_stride]), subtotal);
      }
      sum += subtotal;
    }
    narrow(sum, static_cast<T*>(const_cast<void*>(out.data)) + which * out.stride +
                    row * out.row_stride + col * out.col_stride);
  }
}

// What runs the products of a layer, and how many it has run.
template <class T>
struct Multiply {
  int64_t* count;

  void operator()(const Matrices& a, const Matrices& b, const Matrices& out) const {
    ++*count;
    const dim3 blocks = element_blocks(out.count * out.rows * out.cols);
    const cudaError_t error =
        launch_kernel<multiply_kernel<T>>(blocks, dim3(kElementThreads), 0, nullptr, a, b, out);
    worker::require(error == cudaSuccess, "multiply", "the launch failed");
  }
};

template <class T>
using Products = SharedProducts<T, Multiply<T>>;

// One call: its layer, what runs its products, and how many have run.
template <class T>
struct Call {
  Call(const int64_t* rng_state, const Layer* sizes, double p, double scale,
       const uint32_t* mask_bits)
      : layer(on_host(sizes)),
        run(problem_of(layer, p, scale, stored_masks(mask_bits)), rng_from_state(rng_state),
            nullptr, {&count}, layer.cut) {}

  int64_t count = 0;
  Layer layer;
  Products<T> run;
};

// Each entry writes how many products it has run to `products`.
template <class T>
int output(const int64_t* rng_state, const Layer* sizes, double p, double scale,
           const uint32_t* mask_bits, const T* input, const T* weight, const T* bias,
           const uint32_t* bias_bits, int64_t* products, T* result) {
  Call<T> call(rng_state, sizes, p, scale, mask_bits);
  const Layer& layer = call.layer;
  const Workspace<T> weights(call.run.weights_for_output());
  const bool has_bias = on_host(bias_bits) != kNoMaskBits;
  const int error = call.run.output(
      operand(layer, input, layer.in_features), operand(layer, weight, layer.in_features),
      {has_bias ? bias : nullptr, layer.step, bias_bits}, weights.data(), result);
  copy_to_device(products, &call.count, sizeof call.count);
  return error;
}

template <class T>
int d_input(const int64_t* rng_state, const Layer* sizes, double p, double scale,
            const uint32_t* mask_bits, const T* weight, const T* grad, int64_t* products,
            T* result) {
  Call<T> call(rng_state, sizes, p, scale, mask_bits);
  const Layer& layer = call.layer;
  const Workspace<T> weights(call.run.weights_for_d_input());
  const int error =
      call.run.d_input(operand(layer, grad, layer.out_features),
                       operand(layer, weight, layer.in_features), weights.data(), result);
  copy_to_device(products, &call.count, sizeof call.count);
  return error;
}

template <class T>
int d_weight(const int64_t* rng_state, const Layer* sizes, double p, double scale,
             const uint32_t* mask_bits, const T* input, const T* grad, int64_t* products,
             T* result) {
  Call<T> call(rng_state, sizes, p, scale, mask_bits);
  const Layer& layer = call.layer;
  const Workspace<T> made(call.run.products_for_d_weight());
  const Workspace<Real<T>> sums(call.run.sums_for_d_weight());
  const int error =
      call.run.d_weight(operand(layer, grad, layer.out_features),
                        operand(layer, input, layer.in_features), made.data(), sums.data(), result);
  copy_to_device(products, &call.count, sizeof call.count);
  return error;
}

// Elements of the workspaces of output, d_input and d_weight, of d_weight's sums, and whether
// products are used. Nothing runs.
template <class T>
int plan(const Layer* sizes, int64_t* out) {
  const Layer layer = on_host(sizes);
  const DropConnectProblem problem = problem_of(layer, 0.5, 2, nullptr);
  int64_t none = 0;
  const Products<T> run(problem, {}, nullptr, {&none});
  const int64_t found[] = {run.weights_for_output(), run.weights_for_d_input(),
                           run.products_for_d_weight(), run.sums_for_d_weight(),
                           products_pay<T>(problem)};
  copy_to_device(out, found, sizeof found);
  return 0;
}

template <class T>
struct Entries {
  explicit Entries(const std::string& dtype)
      : output_entry("shared_output_" + dtype, output<T>),
        d_input_entry("shared_d_input_" + dtype, d_input<T>),
        d_weight_entry("shared_d_weight_" + dtype, d_weight<T>),
        plan_entry("shared_plan_" + dtype, plan<T>) {}

  worker::Registration output_entry, d_input_entry, d_weight_entry, plan_entry;
};

const Entries<float> float32_entries("float32");
const Entries<__nv_bfloat16> bfloat16_entries("bfloat16");
const Entries<__half> float16_entries("float16");
const Entries<double> float64_entries("float64");

}  // namespace
}  // namespace fused_dropout::dropconnect
