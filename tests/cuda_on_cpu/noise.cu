// Entries of the kernels on continuous noise, one for each op and dtype. Arrays lie in device
// memory, where only kernels can read them; `rng_state` and `logit_p` among them.
#include <string>
#include <type_traits>

#include "../../csrc/cuda/concrete_dropout.cuh"
#include "../../csrc/cuda/gaussian_dropout.cuh"
#include "../../csrc/cuda/gaussian_noise.cuh"
#include "device_memory.h"
#include "entries.h"

namespace fused_dropout {
namespace {

const MaskRule kRule = make_noise_rule(0, 0);

template <class Noise, class T>
int noise(const int64_t* rng_state, T* out, int64_t count, int64_t start, int64_t max_blocks) {
  return launch_noise<Noise>(kRule, rng_from_state(rng_state), out, count, start, nullptr,
                             max_blocks);
}

template <class T>
int gaussian_dropout(const int64_t* rng_state, double sigma, const T* in, T* out, int64_t count) {
  return gaussian_dropout::launch(kRule, rng_from_state(rng_state), sigma, in, out, count, nullptr);
}

template <class T>
int gaussian_dropout_in_place(const int64_t* rng_state, double sigma, T* out, int64_t count) {
  return gaussian_dropout::launch<T>(kRule, rng_from_state(rng_state), sigma, out, out, count,
                                     nullptr);
}

template <class T, bool kGradient>
int gaussian_noise(const int64_t* rng_state, double eps, const T* other, const T* variance, T* out,
                   int64_t count) {
  const gaussian_noise::Operands<T> tensors = {other, variance, out, count};
  return gaussian_noise::launch<T, kGradient>(kRule, rng_from_state(rng_state), eps, tensors,
                                              nullptr);
}

template <class T>
int concrete_dropout(const int64_t* rng_state, const Real<T>* logit_p, double temperature,
                     const T* in, T* out, int64_t count) {
  const concrete_dropout::Source<Real<T>> source = {logit_p, static_cast<Real<T>>(1 / temperature)};
  return concrete_dropout::launch_forward(kRule, rng_from_state(rng_state), source, in, out, count,
                                          nullptr);
}

// `partial` has exactly as many elements as the kernels have blocks.
template <class T>
int concrete_dropout_backward(const int64_t* rng_state, const Real<T>* logit_p, double temperature,
                              const T* grad, const T* in, T* d_in, Real<T>* partial,
                              Real<T>* d_logit, int64_t count, int64_t max_blocks) {
  const concrete_dropout::Source<Real<T>> source = {logit_p, static_cast<Real<T>>(1 / temperature)};
  const concrete_dropout::Gradients<T> tensors = {grad, in, d_in, partial, count};
  return concrete_dropout::launch_backward(kRule, rng_from_state(rng_state), source, tensors,
                                           d_logit, nullptr, max_blocks);
}

MaskedDims dims_of(const MaskedDim* dims, int64_t count) {
  return make_masked_dims(on_host(dims, count).data(), static_cast<int>(count));
}

// Forward and backward by a mask of `mask_count` elements that dimensions share. `factors` and
// `slopes` have room for it.
template <class T>
int concrete_dropout_shared(const int64_t* rng_state, const Real<T>* logit_p, double temperature,
                            Real<T>* factors, int64_t mask_count, const MaskedDim* dims,
                            int64_t dim_count, const T* in, T* out, int64_t count,
                            int64_t max_blocks) {
  const concrete_dropout::Source<Real<T>> source = {logit_p, static_cast<Real<T>>(1 / temperature)};
  const cudaError_t error = concrete_dropout::launch_factors<Real<T>>(
      kRule, rng_from_state(rng_state), source, {factors, nullptr}, mask_count, nullptr,
      max_blocks);
  if (error != cudaSuccess) return error;
  return concrete_dropout::launch_shared_forward<T>(factors, dims_of(dims, dim_count), in, out,
                                                    count, nullptr, max_blocks);
}

template <class T>
int concrete_dropout_shared_backward(const int64_t* rng_state, const Real<T>* logit_p,
                                     double temperature, Real<T>* factors, Real<T>* slopes,
                                     int64_t mask_count, const MaskedDim* dims, int64_t dim_count,
                                     const T* grad, const T* in, T* d_in, Real<T>* partial,
                                     Real<T>* d_logit, int64_t count, int64_t max_blocks) {
  const concrete_dropout::Source<Real<T>> source = {logit_p, static_cast<Real<T>>(1 / temperature)};
  const concrete_dropout::MaskFactors<Real<T>> mask = {factors, slopes};
  const cudaError_t error = concrete_dropout::launch_factors(
      kRule, rng_from_state(rng_state), source, mask, mask_count, nullptr, max_blocks);
  if (error != cudaSuccess) return error;
  const concrete_dropout::Gradients<T> tensors = {grad, in, d_in, partial, count};
  return concrete_dropout::launch_shared_backward(mask, dims_of(dims, dim_count), tensors, d_logit,
                                                  nullptr, max_blocks);
}

template <class T>
struct Entries {
  explicit Entries(const std::string& dtype)
      : entries{
            {"gaussian_dropout_" + dtype, gaussian_dropout<T>},
            {"gaussian_dropout_in_place_" + dtype, gaussian_dropout_in_place<T>},
            {"gaussian_noise_" + dtype, gaussian_noise<T, false>},
            {"gaussian_noise_d_variance_" + dtype, gaussian_noise<T, true>},
            {"concrete_dropout_" + dtype, concrete_dropout<T>},
            {"concrete_dropout_backward_" + dtype, concrete_dropout_backward<T>},
            {"concrete_dropout_shared_" + dtype, concrete_dropout_shared<T>},
            {"concrete_dropout_shared_backward_" + dtype, concrete_dropout_shared_backward<T>}} {}

  worker::Registration entries[8];
};

const Entries<float> float32_entries("float32");
const Entries<__nv_bfloat16> bfloat16_entries("bfloat16");
const Entries<__half> float16_entries("float16");
const Entries<double> float64_entries("float64");
const worker::Registration noise_entries[] = {
    {"uniform_noise_float32", noise<UniformNoise, float>},
    {"uniform_noise_float64", noise<UniformNoise, double>},
    {"normal_noise_float32", noise<NormalNoise, float>},
    {"normal_noise_float64", noise<NormalNoise, double>},
};

}  // namespace
}  // namespace fused_dropout
