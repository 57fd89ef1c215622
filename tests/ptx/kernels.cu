// The kernels whose PTX is interpreted, and entries that launch them as the package does. Every
// pointer is to the interpreted device's memory, but the entries never look behind it. Matrices are
// dense; `Layer` is rows, in_features, out_features, rows_per_mask. `Layout` is the dimensions of a
// tensor, outermost in memory first.
#include "../../csrc/cuda/dropconnect.cuh"
#include "../../csrc/cuda/dropout.cuh"

// Not in a second unnamed namespace beside fused_dropout's: nvcc would confuse the two.
namespace fused_dropout {

struct Layer {
  int64_t rows, in_features, out_features, rows_per_mask;
};

struct Layout {
  int64_t count;
  MaskedDim dims[4];
};

namespace {

MaskRule rule_of(double p, int64_t stream, int64_t digits) {
  // Seed and offset stand in the rng_state.
  return make_mask_rule(0, 0, static_cast<uint32_t>(stream), p, static_cast<int>(digits));
}

DropConnectProblem problem_of(const Layer& layer, double p, double scale,
                              const uint32_t* mask_bits) {
  return {rule_of(p, kStreamMask, kDefaultDigits),
          layer.rows,
          layer.in_features,
          layer.out_features,
          layer.rows_per_mask,
          scale,
          mask_bits};
}

MatrixView dense(const void* data, int64_t cols) { return {data, cols, 1}; }

// Blocks that are taken to run at the same time, which decides how sums are cut.
constexpr int64_t kSlots = 2 * 132;

template <class T>
dropconnect::Forward<T> forward_pass(const Layer& layer, double p, double scale,
                                     const uint32_t* mask_bits, const T* input, const T* weight) {
  return {problem_of(layer, p, scale, mask_bits), dense(input, layer.in_features),
          dense(weight, layer.in_features), kSlots};
}

// d_weight (kOutsAreResults, panel = input) or d_input (panel = weight).
template <class T, bool kOutsAreResults>
dropconnect::Gradients<T> gradient_pass(const Layer& layer, double p, double scale,
                                        const uint32_t* mask_bits, const T* panel, const T* grad) {
  const MatrixView of_panel = dense(panel, layer.in_features);
  return {problem_of(layer, p, scale, mask_bits), dense(grad, layer.out_features),
          kOutsAreResults ? nullptr : &of_panel, kOutsAreResults ? &of_panel : nullptr, kSlots};
}

template <class T, bool kOutsAreResults>
int gradient(const int64_t* rng_state, const Layer& layer, double p, double scale,
             const uint32_t* mask_bits, const T* panel, const T* grad, Real<T>* workspace,
             T* result) {
  return gradient_pass<T, kOutsAreResults>(layer, p, scale, mask_bits, panel, grad)
      .launch(rng_from_state(rng_state), workspace, kOutsAreResults ? nullptr : result,
              kOutsAreResults ? result : nullptr, nullptr);
}

template <class T>
int bias_grad(const int64_t* rng_state, const Layer& layer, double p, double scale, const T* grad,
              Real<T>* sums, T* result) {
  const MaskRule rule = rule_of(p, kStreamBias, kDefaultDigits);
  return dropconnect::launch_bias_grad<T>(
      rule, rng_from_state(rng_state), dense(grad, layer.out_features), layer.rows,
      layer.out_features, layer.rows_per_mask,
      dropconnect::bias_slices(layer.rows, layer.out_features), scale, sums, result, nullptr);
}

// With the groups of bits that a warp of a large tensor draws at a time; 0 as launched for `count`.
template <class T>
int linear_dropout(const int64_t* rng_state, double p, const AffineMap& map,
                   const dropout::Operands<T>& tensors, int64_t warp_groups) {
  const MaskRule rule = rule_of(p, kStreamMask, kDefaultDigits);
  const RngSource rng = rng_from_state(rng_state);
  if (warp_groups == 0) return dropout::launch_linear<T>(rule, rng, map, tensors, nullptr);
  return dropout::launch_linear_as<T, false>(rule, rng, map, tensors, static_cast<int>(warp_groups),
                                             true, dim3(1), nullptr, 0);
}

// Each of 32 threads copies 2 x `Bytes`, in two groups, the second with `valid` bytes. The first
// result is read after the wait for the first group, the second both too early and in time.
template <int Bytes>
__global__ void copy_async_kernel(const unsigned char* from, int64_t valid,
                                  unsigned char* results) {
  FUSED_DROPOUT_SHARED(uint4, tile, [2][kWarpLanes]);
  const int lane = threadIdx.x;
  unsigned char* const copies[] = {reinterpret_cast<unsigned char*>(&tile[0][lane]),
                                   reinterpret_cast<unsigned char*>(&tile[1][lane])};
  copy_async<Bytes>(copies[0], from + lane * Bytes);
  copy_async_commit();
  copy_async<Bytes>(copies[1], from + (kWarpLanes + lane) * Bytes, static_cast<int>(valid));
  copy_async_commit();
  unsigned char* const out = results + lane * 3 * Bytes;
  copy_async_wait<1>();
  for (int k = 0; k < Bytes; ++k) {
    out[k] = copies[0][k];
    out[Bytes + k] = copies[1][k];
  }
  copy_async_wait<0>();
  for (int k = 0; k < Bytes; ++k) out[2 * Bytes + k] = copies[1][k];
}

template <int Bytes>
int launch_copy_async(const unsigned char* from, int64_t valid, unsigned char* results) {
  return launch_kernel<copy_async_kernel<Bytes>>(dim3(1), dim3(kWarpLanes), 0, nullptr, from, valid,
                                                 results);
}

}  // namespace

extern "C" {

int draw_groups(const int64_t* rng_state, int64_t stream, double p, int64_t digits, int64_t first,
                int64_t stride, int64_t count, uint32_t* out, int64_t max_blocks) {
  return launch_draw_groups(rule_of(p, stream, digits), rng_from_state(rng_state), first, stride,
                            count, out, nullptr, max_blocks);
}

int draw_packed(const int64_t* rng_state, int64_t stream, double p, int64_t digits, int64_t first,
                int64_t rows, int64_t cols, uint32_t* out, int64_t max_blocks) {
  return launch_draw_packed(rule_of(p, stream, digits), rng_from_state(rng_state), first, rows,
                            cols, out, nullptr, max_blocks);
}

int draw_bytes(const int64_t* rng_state, int64_t stream, double p, int64_t digits, int64_t first,
               int64_t rows, int64_t cols, uint8_t* out, int64_t max_blocks) {
  return launch_draw_bytes(rule_of(p, stream, digits), rng_from_state(rng_state), first, rows, cols,
                           out, nullptr, max_blocks);
}

int store_masks(const int64_t* rng_state, Layer layer, double p, uint32_t* bits) {
  return dropconnect::launch_store_masks(problem_of(layer, p, 1, nullptr),
                                         rng_from_state(rng_state), 0, bits, nullptr);
}

// The four products of one dtype, and the numbers that their workspaces hold. A pointer says
// whether an operand is aligned, which decides whether it is copied.
#define DROPCONNECT_ENTRIES(name, T)                                                              \
  int64_t forward_workspace_##name(Layer layer, const T* input, const T* weight) {                \
    return forward_pass<T>(layer, 0, 0, nullptr, input, weight).workspace();                      \
  }                                                                                               \
  int64_t d_input_workspace_##name(Layer layer, const T* weight, const T* grad) {                 \
    return gradient_pass<T, false>(layer, 0, 0, nullptr, weight, grad).workspace();               \
  }                                                                                               \
  int64_t d_weight_workspace_##name(Layer layer, const T* input, const T* grad) {                 \
    return gradient_pass<T, true>(layer, 0, 0, nullptr, input, grad).workspace();                 \
  }                                                                                               \
  int forward_##name(const int64_t* rng_state, Layer layer, double p, double scale,               \
                     const uint32_t* mask_bits, const T* input, const T* weight, const T* bias,   \
                     Real<T>* workspace, T* output) {                                             \
    return forward_pass<T>(layer, p, scale, mask_bits, input, weight)                             \
        .launch(rng_from_state(rng_state), {bias, 1}, workspace, output, nullptr, nullptr);       \
  }                                                                                               \
  int d_input_##name(const int64_t* rng_state, Layer layer, double p, double scale,               \
                     const uint32_t* mask_bits, const T* weight, const T* grad,                   \
                     Real<T>* workspace, T* result) {                                             \
    return gradient<T, false>(rng_state, layer, p, scale, mask_bits, weight, grad, workspace,     \
                              result);                                                            \
  }                                                                                               \
  int d_weight_##name(const int64_t* rng_state, Layer layer, double p, double scale,              \
                      const uint32_t* mask_bits, const T* input, const T* grad,                   \
                      Real<T>* workspace, T* result) {                                            \
    return gradient<T, true>(rng_state, layer, p, scale, mask_bits, input, grad, workspace,       \
                             result);                                                             \
  }                                                                                               \
  int d_bias_##name(const int64_t* rng_state, Layer layer, double p, double scale, const T* grad, \
                    Real<T>* sums, T* result) {                                                   \
    return bias_grad<T>(rng_state, layer, p, scale, grad, sums, result);                          \
  }

DROPCONNECT_ENTRIES(float32, float)
DROPCONNECT_ENTRIES(bfloat16, __nv_bfloat16)
DROPCONNECT_ENTRIES(float16, __half)
DROPCONNECT_ENTRIES(float64, double)

// Dropout of one dtype. A residual of 0 is none.
#define DROPOUT_ENTRIES(name, T)                                                                  \
  int dropout_linear_##name(const int64_t* rng_state, double p, double scale, double shift,       \
                            double fill, const T* in, const T* residual, T* out, int64_t count,   \
                            int64_t warp_groups) {                                                \
    return linear_dropout<T>(rng_state, p, {scale, shift, fill}, {in, residual, out, count},      \
                             warp_groups);                                                        \
  }                                                                                               \
  int dropout_masked_##name(const uint32_t* bits, Layout layout, double scale, double shift,      \
                            double fill, const T* in, const T* residual, T* out, int64_t count) { \
    const MaskedDims dims = make_masked_dims(layout.dims, static_cast<int>(layout.count));        \
    const dropout::OneMap<Real<T>> map = dropout::one_map<T>({scale, shift, fill});               \
    return dropout::launch_masked<T>(bits, dims, map, {in, residual, out, count}, nullptr);       \
  }

DROPOUT_ENTRIES(float32, float)
DROPOUT_ENTRIES(bfloat16, __nv_bfloat16)
DROPOUT_ENTRIES(float16, __half)
DROPOUT_ENTRIES(float64, double)

int copy_async(int64_t bytes, const unsigned char* from, int64_t valid, unsigned char* results) {
  if (bytes == 4) return launch_copy_async<4>(from, valid, results);
  if (bytes == 8) return launch_copy_async<8>(from, valid, results);
  return launch_copy_async<16>(from, valid, results);
}
}  // extern "C"

}  // namespace fused_dropout
