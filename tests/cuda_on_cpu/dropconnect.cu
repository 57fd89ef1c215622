// Entries of the DropConnect kernels, one for each product and dtype. Matrices are dense; `layer`
// is rows, in_features, out_features, rows_per_mask and the number of blocks to aim at.
#include <vector>

#include "../../csrc/cuda/dropconnect.cuh"
#include "entries.h"

namespace {

using namespace fused_dropout;

enum Layer { kRows, kInFeatures, kOutFeatures, kRowsPerMask, kBlocks };

// `mask_bits` are stored masks, or one word that says that there are none.
constexpr uint32_t kNoMaskBits = 0xFFFFFFFF;

DropConnectProblem problem_of(const int64_t* layer, double p, double scale,
                              const uint32_t* mask_bits) {
  const MaskRule rule = make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits);
  const uint32_t* stored = *mask_bits == kNoMaskBits ? nullptr : mask_bits;
  return {rule,  layer[kRows], layer[kInFeatures], layer[kOutFeatures], layer[kRowsPerMask],
          scale, stored};
}

MatrixView dense(const void* data, int64_t cols) { return {data, cols, 1}; }

template <class T>
int forward(const int64_t* rng_state, const int64_t* layer, double p, double scale,
            const uint32_t* mask_bits, const T* input, const T* weight, const T* bias,
            const uint32_t* bias_bits, T* output) {
  const DropConnectProblem problem = problem_of(layer, p, scale, mask_bits);
  std::vector<Sum<T>> workspace(forward_slices(problem, layer[kBlocks]) * problem.rows *
                                problem.out_features);
  return launch_forward<T>(problem, rng_from_state(rng_state), dense(input, problem.in_features),
                           dense(weight, problem.in_features),
                           {bias, 1, bias_bits, problem.rows_per_mask}, workspace.data(), output,
                           nullptr, layer[kBlocks]);
}

template <class T, bool kOutsAreResults>
int outer(const int64_t* rng_state, const int64_t* layer, double p, double scale,
          const uint32_t* mask_bits, const T* panel, const T* grad, T* result) {
  const DropConnectProblem problem = problem_of(layer, p, scale, mask_bits);
  const int64_t results = kOutsAreResults ? problem.out_features : problem.rows;
  std::vector<Sum<T>> workspace(outer_slices<kOutsAreResults>(problem, layer[kBlocks]) * results *
                                problem.in_features);
  return launch_outer<T, kOutsAreResults>(
      problem, rng_from_state(rng_state), dense(panel, problem.in_features),
      dense(grad, problem.out_features), workspace.data(), result, nullptr, layer[kBlocks]);
}

template <class T>
int bias_grad(const int64_t* layer, double scale, const uint32_t* bias_bits, const T* grad,
              T* d_bias) {
  return launch_bias_grad<T>(dense(grad, layer[kOutFeatures]), layer[kRows], layer[kOutFeatures],
                             layer[kRowsPerMask], bias_bits, scale, d_bias, nullptr);
}

int store_masks(const int64_t* rng_state, const int64_t* layer, double p, uint32_t* bits) {
  const uint32_t none = kNoMaskBits;
  return launch_store_masks(problem_of(layer, p, 1, &none), rng_from_state(rng_state), bits,
                            nullptr);
}

CUDA_ON_CPU_ENTRY(store_masks);

template <class T>
struct Entries {
  explicit Entries(const std::string& dtype)
      : forward_entry(name("forward", dtype), forward<T>),
        d_input_entry(name("d_input", dtype), outer<T, false>),
        d_weight_entry(name("d_weight", dtype), outer<T, true>),
        d_bias_entry(name("d_bias", dtype), bias_grad<T>) {}

  static const char* name(const char* product, const std::string& dtype) {
    return (new std::string(std::string(product) + "_" + dtype))->c_str();
  }

  worker::Registration forward_entry, d_input_entry, d_weight_entry, d_bias_entry;
};

const Entries<float> float32_entries("float32");
const Entries<__nv_bfloat16> bfloat16_entries("bfloat16");
const Entries<__half> float16_entries("float16");
const Entries<double> float64_entries("float64");

}  // namespace
