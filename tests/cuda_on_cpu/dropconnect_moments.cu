// Entries of the kernels of DropConnect's moments, one for each dtype. `sizes` is a Layer, and like
// every array in device memory, where only kernels can read it.
#include "../../csrc/cuda/dropconnect_moments.cuh"
#include "device_memory.h"
#include "entries.h"

namespace fused_dropout::dropconnect_moments {
namespace {

struct Layer {
  int64_t rows;
  int64_t in_features;
  int64_t out_features;
  int64_t input_strides[2];  // of rows and columns, in elements
  int64_t weight_strides[2];
  int64_t bias_stride;
  int64_t has_bias;  // else `bias` is not read
  int64_t mask_bias;
  int64_t max_blocks;
};

template <class T>
int moments(const Layer* sizes, double mean_scale, double variance_scale, const T* input,
            const T* weight, const T* bias, Real<T>* mean, Real<T>* variance) {
  const Layer layer = on_host(sizes);
  const MomentsProblem problem = {{input, layer.input_strides[0], layer.input_strides[1]},
                                  {weight, layer.weight_strides[0], layer.weight_strides[1]},
                                  layer.has_bias ? bias : nullptr,
                                  layer.bias_stride,
                                  layer.rows,
                                  layer.in_features,
                                  layer.out_features,
                                  mean_scale,
                                  variance_scale,
                                  layer.mask_bias != 0};
  return launch<T>(problem, mean, variance, nullptr, layer.max_blocks);
}

const worker::Registration entries[] = {
    {"dropconnect_moments_float32", moments<float>},
    {"dropconnect_moments_bfloat16", moments<__nv_bfloat16>},
    {"dropconnect_moments_float16", moments<__half>},
    {"dropconnect_moments_float64", moments<double>},
};

}  // namespace
}  // namespace fused_dropout::dropconnect_moments
