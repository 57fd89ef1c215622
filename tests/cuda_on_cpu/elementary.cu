// Entries of the functions of one number: what the kernels on continuous noise and the epilogue's
// activations are made of. Arrays lie in device memory.
#include "../../csrc/cuda/activations.cuh"
#include "../../csrc/cuda/noise.cuh"
#include "entries.h"

namespace fused_dropout {
namespace {

constexpr int kThreads = 64;

template <class Function>
__global__ void values_kernel(const float* x, float* out, int64_t count) {
  for (int64_t k = threadIdx.x; k < count; k += kThreads) out[k] = Function()(x[k]);
}

template <class Function>
int values(const float* x, float* out, int64_t count) {
  return launch_kernel<values_kernel<Function>>(dim3(1), dim3(kThreads), 0, nullptr, x, out, count);
}

struct MinusLog {
  FUSED_DROPOUT_DEVICE float operator()(float x) const { return minus_log(x); }
};
struct SquareRoot {
  FUSED_DROPOUT_DEVICE float operator()(float x) const { return square_root_of_normal(x); }
};
template <class Activation>
struct Value {
  FUSED_DROPOUT_DEVICE float operator()(float x) const { return Activation().value(x); }
};
template <class Activation>
struct Slope {
  FUSED_DROPOUT_DEVICE float operator()(float x) const { return Activation().slope(x); }
};

// The normals of words 2 k and 2 k + 1.
__global__ void normals_kernel(const uint32_t* words, float* out, int64_t pairs) {
  for (int64_t k = threadIdx.x; k < pairs; k += kThreads) {
    normal_pair(words[2 * k], words[2 * k + 1], out + 2 * k, out + 2 * k + 1);
  }
}

int normals(const uint32_t* words, float* out, int64_t pairs) {
  return launch_kernel<normals_kernel>(dim3(1), dim3(kThreads), 0, nullptr, words, out, pairs);
}

const worker::Registration registrations[] = {
    {"elementary_minus_log", values<MinusLog>},
    {"elementary_square_root", values<SquareRoot>},
    {"elementary_gelu", values<Value<Gelu<float>>>},
    {"elementary_gelu_slope", values<Slope<Gelu<float>>>},
    {"elementary_gelu_of_16_bits", values<Value<Gelu<__nv_bfloat16>>>},
    {"elementary_gelu_of_16_bits_slope", values<Slope<Gelu<__nv_bfloat16>>>},
    {"elementary_gelu_tanh", values<Value<GeluTanh>>},
    {"elementary_gelu_tanh_slope", values<Slope<GeluTanh>>},
    {"elementary_silu", values<Value<Silu>>},
    {"elementary_silu_slope", values<Slope<Silu>>},
    {"elementary_normals", normals},
};

}  // namespace
}  // namespace fused_dropout
