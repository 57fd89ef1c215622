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
  int64_t step;      // from an operand's element to the next of its row; rows follow one another
  int64_t has_bias;  // else `bias` is not read
  int64_t mask_bias;
};

template <class T>
int moments(const Layer* sizes, double mean_scale, double variance_scale, const T* input,
            const T* weight, const T* bias, Real<T>* mean, Real<T>* variance) {
  const Layer layer = on_host(sizes);
  const int64_t row = layer.in_features * layer.step;
  const MomentsProblem problem = {{input, row, layer.step},
                                  {weight, row, layer.step},
                                  layer.has_bias ? bias : nullptr,
                                  layer.step,
                                  layer.rows,
                                  layer.in_features,
                                  layer.out_features,
                                  mean_scale,
                                  variance_scale,
                                  layer.mask_bias != 0};
  return launch<T>(problem, mean, variance, nullptr);
}

const worker::Registration entries[] = {
    {"dropconnect_moments_float32", moments<float>},
    {"dropconnect_moments_bfloat16", moments<__nv_bfloat16>},
    {"dropconnect_moments_float16", moments<__half>},
    {"dropconnect_moments_float64", moments<double>},
};

}  // namespace
}  // namespace fused_dropout::dropconnect_moments
