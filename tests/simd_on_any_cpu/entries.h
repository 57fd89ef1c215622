// The CPU kernels of one instruction set without torch: a C function for each, which cuts the work
// as the op's binding does, on one thread. `type` is a ScalarType's number, strides count elements,
// and all other matrices are contiguous.
#pragma once

#include <cstdint>

extern "C" {

struct Random {
  int64_t seed;
  int64_t offset;
  double p;
};

struct Affine {
  double scale;
  double shift;
  double fill;
};

struct Matrix {
  const void* data;
  int64_t row_stride;
  int64_t col_stride;
};

struct Layer {
  int64_t rows;
  int64_t in_features;
  int64_t out_features;
  int64_t rows_per_mask;
  double scale;
};

void mask_draw_groups(const Random* random, int64_t stream, int64_t digits, int64_t first,
                      int64_t stride, int64_t count, uint32_t* out);
void mask_draw_bytes(const Random* random, int64_t stream, int64_t digits, int64_t first,
                     int64_t rows, int64_t cols, uint8_t* out);

void dropout_draw_and_apply(int64_t type, const Random* random, const Affine* map, const void* in,
                            const void* residual, void* out, int64_t count, int64_t first_group);
void dropout_apply(int64_t type, const Affine* map, const void* in, const void* residual, void* out,
                   int64_t count, const uint32_t* bits);
void dropout_apply_alike(int64_t type, const Affine* map, const void* in, const void* residual,
                         void* out, int64_t count, int64_t kept);
void dropout_apply_columns(int64_t type, const Affine* map, const void* in, const void* residual,
                           void* out, int64_t rows, int64_t cols, int64_t row_stride,
                           const int64_t* first_bits, const uint32_t* bits);

void zoneout_draw_and_select(int64_t type, const Random* random, const void* input,
                             const void* previous, void* out, int64_t count, int64_t first_group);
void zoneout_select(int64_t type, const void* input, const void* previous, void* out, int64_t count,
                    const uint32_t* bits);
void zoneout_select_columns(int64_t type, const void* input, const void* previous, void* out,
                            int64_t rows, int64_t cols, int64_t row_stride,
                            const int64_t* first_bits, const uint32_t* bits);
void zoneout_draw_and_split(int64_t type, const Random* random, const void* grad, void* d_input,
                            void* d_previous, int64_t count, int64_t first_group);
void zoneout_split(int64_t type, const void* grad, void* d_input, void* d_previous, int64_t count,
                   const uint32_t* bits);
void zoneout_split_columns(int64_t type, const void* grad, void* d_input, void* d_previous,
                           int64_t rows, int64_t cols, int64_t row_stride,
                           const int64_t* first_bits, const uint32_t* bits);

// Words of a layer's stored masks; and the masks.
int64_t dropconnect_mask_words(const Layer* layer);
void dropconnect_mask_bits(const Random* random, const Layer* layer, uint32_t* out);
// `bias` and `mask_bits` may be null; without stored masks the kernels draw.
void dropconnect_forward(int64_t type, const Random* random, const Layer* layer,
                         const uint32_t* mask_bits, const Matrix* input, const Matrix* weight,
                         const void* bias, int64_t bias_stride, void* output);
// `d_input` or `d_weight` may be null.
void dropconnect_backward(int64_t type, const Random* random, const Layer* layer,
                          const uint32_t* mask_bits, const Matrix* grad_output, const Matrix* input,
                          const Matrix* weight, void* d_input, void* d_weight);
void dropconnect_bias_grad(int64_t type, const Random* random, const Layer* layer,
                           const Matrix* grad_output, void* d_bias);

// The masked weights of mask `mask`, and that mask on a matrix, in the type of sums or added to
// one.
void mask_weight_apply(int64_t type, const Random* random, const Layer* layer,
                       const uint32_t* mask_bits, const Matrix* weight, int64_t mask, void* out);
void mask_weight_apply_wide(int64_t type, const Random* random, const Layer* layer,
                            const uint32_t* mask_bits, const Matrix* weight, int64_t mask,
                            void* out);
// `weight` and `out` are [in_features, out_features], the latter rounded up to a multiple of 16.
void mask_weight_apply_transposed(int64_t type, const Random* random, const Layer* layer,
                                  const uint32_t* mask_bits, const void* weight, int64_t mask,
                                  void* out);
void mask_weight_add(int64_t type, const Random* random, const Layer* layer,
                     const uint32_t* mask_bits, const Matrix* weight, int64_t mask, void* sum);
// `stack` is [masks, out_features, in_features].
void mask_weight_sum(int64_t type, const Random* random, const Layer* layer,
                     const uint32_t* mask_bits, const void* stack, void* out);
void mask_weight_add_row(int64_t type, const void* row, int64_t count, void* out);
int64_t mask_weight_all_finite(int64_t type, const void* data, int64_t stride, int64_t count);

// The squares of a matrix and, where `wide` is not null, the matrix itself; rows of both are
// `stride` elements long, and end with zeros.
void dropconnect_moments_square(int64_t type, const Matrix* matrix, int64_t rows, int64_t cols,
                                void* wide, void* squares, int64_t stride);
// Of a layer's sizes and scale: mean_scale is the square root of variance_scale. `wide` and
// `squares` are what the former left of the input.
void dropconnect_moments_apply(int64_t type, const Layer* layer, int64_t mask_bias,
                               const void* wide, const void* squares, int64_t stride,
                               const Matrix* weight, const void* bias, void* mean, void* variance);
// `mean` and `variance` hold sums of products.
void dropconnect_moments_finish(int64_t type, const Layer* layer, int64_t mask_bias,
                                const void* bias, void* mean, void* variance);

// `size` and `block` are depth, height and width. `out` has whole words of 64 bits.
void drop_block_mask(const Random* random, int64_t maps, const int64_t* size, const int64_t* block,
                     uint64_t* out);
int64_t drop_block_count_bits(const uint64_t* bits, int64_t first, int64_t count);

// `features` is a multiple of the row's, and at least 128; `bias` has as many.
void bias_act_dropout_add_forward(int64_t type, const Random* random, double scale,
                                  int64_t activation, int64_t features, const void* in,
                                  const void* bias, const void* residual, void* out, int64_t count,
                                  int64_t first_group);
void bias_act_dropout_add_backward(int64_t type, const Random* random, double scale,
                                   int64_t activation, int64_t features, const void* grad,
                                   const void* in, const void* bias, void* d_input, void* sums,
                                   int64_t count, int64_t first_group);

// Noise starts at block `first_block` of 128 elements.
void noise_uniforms(int64_t type, const Random* random, int64_t first_block, int64_t count,
                    void* out);
void noise_normals(int64_t type, const Random* random, int64_t first_block, int64_t count,
                   void* out);
void gaussian_dropout_apply(int64_t type, const Random* random, double sigma, const void* in,
                            void* out, int64_t first_block, int64_t count);
void gaussian_noise_add(int64_t type, const Random* random, double eps, const void* mean,
                        const void* variance, void* out, int64_t first_block, int64_t count);
void gaussian_noise_d_variance(int64_t type, const Random* random, double eps, const void* grad,
                               const void* variance, void* out, int64_t first_block, int64_t count);
void concrete_dropout_apply(int64_t type, const Random* random, double logit, double temperature,
                            const void* in, void* out, int64_t first_block, int64_t count);
double concrete_dropout_backward(int64_t type, const Random* random, double logit,
                                 double temperature, const void* grad, const void* in, void* d_in,
                                 int64_t first_block, int64_t count);
void concrete_dropout_factors(int64_t type, const Random* random, double logit, double temperature,
                              int64_t first_block, int64_t count, void* factors, void* slopes);
void concrete_dropout_multiply(int64_t type, const void* in, const void* factors, int64_t count,
                               void* out);
double concrete_dropout_multiply_and_sum(int64_t type, const void* grad, const void* in,
                                         const void* factors, const void* slopes, int64_t count,
                                         void* d_in);

}  // extern "C"
