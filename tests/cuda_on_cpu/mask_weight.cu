// Entries of the kernels of masked weights, one for each operator and dtype. `sizes` is a Layer,
// and like every array in device memory, where only kernels can read it.
#include "../../csrc/cuda/mask_weight.cuh"
#include "device_memory.h"
#include "entries.h"

namespace fused_dropout::mask_weight {
namespace {

struct Layer {
  int64_t masks;
  int64_t out_features;
  int64_t in_features;
  int64_t mask_stride;  // of the operand, in elements
  int64_t row_stride;
  int64_t col_stride;
  int64_t first_row;  // of the bit matrix
  int64_t rows;
  int64_t first_group;
  int64_t groups;
};

DropConnectProblem problem_of(const Layer& layer, double p, double scale,
                              const uint32_t* mask_bits) {
  return {make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits),
          layer.masks,
          layer.in_features,
          layer.out_features,
          1,
          scale,
          stored_masks(mask_bits)};
}

template <class T>
int apply(const int64_t* rng_state, const Layer* sizes, double p, double scale,
          const uint32_t* mask_bits, const T* weight, T* out) {
  const Layer layer = on_host(sizes);
  return launch_apply<T>(problem_of(layer, p, scale, mask_bits), rng_from_state(rng_state),
                         {weight, layer.row_stride, layer.col_stride},
                         {layer.first_row, layer.rows, layer.first_group, layer.groups}, out,
                         nullptr);
}

template <class T>
int sum(const int64_t* rng_state, const Layer* sizes, double p, double scale,
        const uint32_t* mask_bits, const T* stack, T* out) {
  const Layer layer = on_host(sizes);
  return launch_sum<T>(problem_of(layer, p, scale, mask_bits), rng_from_state(rng_state),
                       {stack, layer.mask_stride, layer.row_stride, layer.col_stride}, out,
                       nullptr);
}

template <class T>
struct Entries {
  explicit Entries(const std::string& dtype)
      : apply_entry("mask_weight_" + dtype, apply<T>),
        sum_entry("mask_weight_sum_" + dtype, sum<T>) {}

  worker::Registration apply_entry, sum_entry;
};

const Entries<float> float32_entries("float32");
const Entries<__nv_bfloat16> bfloat16_entries("bfloat16");
const Entries<__half> float16_entries("float16");
const Entries<double> float64_entries("float64");

}  // namespace
}  // namespace fused_dropout::mask_weight
