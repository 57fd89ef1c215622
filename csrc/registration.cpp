// Operator schemas, one per op and shared by all backends, and the module of build facts.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "build_facts.h"  // written by setup.py
#include "cpu/dispatch.h"

// Every operator takes its tensors first and its settings after them. What is random comes from
// rng_state, int64[2] (seed, offset), on the CPU or on the device of the other tensors, so that
// each operator is a pure function, but for those that end in _ and change their input.
TORCH_LIBRARY(fused_dropout, m) {
  // The mask's device is that of rng_state.
  m.def(
      "mask(Tensor rng_state, SymInt rows, SymInt cols, float p, int stream, int digits) -> "
      "Tensor");
  m.def(
      "packed_mask(Tensor rng_state, SymInt rows, SymInt cols, float p, int stream, int digits)"
      " -> Tensor");

  // out = (kept ? scale * input + shift : fill) + residual. Elements share a mask bit along
  // shared_dims. Reading an argument takes as long as drawing 1000 bits, so most have defaults.
  // AOTInductor hands over None for an empty list.
  m.def(
      "dropout(Tensor input, Tensor? residual, Tensor rng_state, float p, float scale,"
      " int[]? shared_dims=None, float shift=0.0, float fill=0.0) -> Tensor");
  m.def(
      "dropout_(Tensor(a!) input, Tensor? residual, Tensor rng_state, float p, float scale,"
      " int[]? shared_dims=None, float shift=0.0, float fill=0.0) -> Tensor(a!)");

  // The noise itself, float32 or float64, in row-major order; see common/noise.h.
  m.def("uniform_noise(Tensor rng_state, SymInt[] size, ScalarType dtype) -> Tensor");
  m.def("normal_noise(Tensor rng_state, SymInt[] size, ScalarType dtype) -> Tensor");

  // out = input * (1 + sigma * z)
  m.def("gaussian_dropout(Tensor input, Tensor rng_state, float sigma) -> Tensor");
  m.def("gaussian_dropout_(Tensor(a!) input, Tensor rng_state, float sigma) -> Tensor(a!)");

  // out = mean + sqrt(variance + eps) * z; d_variance = grad_output * z / (2 sqrt(variance + eps))
  m.def("gaussian_noise(Tensor mean, Tensor variance, Tensor rng_state, float eps) -> Tensor");
  m.def(
      "gaussian_noise_d_variance(Tensor grad_output, Tensor variance, Tensor rng_state, float eps)"
      " -> Tensor");

  // The gradients are those of input and of logit_p, one element of float32 (float64 for float64).
  m.def(
      "concrete_dropout(Tensor input, Tensor logit_p, Tensor rng_state, float temperature)"
      " -> Tensor");
  m.def(
      "concrete_dropout_backward(Tensor grad_output, Tensor input, Tensor logit_p,"
      " Tensor rng_state, float temperature) -> (Tensor, Tensor)");

  // out = residual + dropout(activation(input + bias)), kept elements times scale; input
  // [..., features]. The gradients of `none` need no input.
  m.def(
      "bias_act_dropout_add(Tensor input, Tensor? bias, Tensor? residual, Tensor rng_state,"
      " float p, str activation, float scale) -> Tensor");
  m.def(
      "bias_act_dropout_add_d_input(Tensor grad_output, Tensor? input, Tensor? bias,"
      " Tensor rng_state, float p, str activation, float scale) -> Tensor");
  m.def(
      "bias_act_dropout_add_d_both(Tensor grad_output, Tensor? input, Tensor? bias,"
      " Tensor rng_state, float p, str activation, float scale) -> (Tensor, Tensor)");

  // DropBlock of input [N, C, spatial sizes...]: the packed keep bits of its elements (of one
  // channel if they share the blocks), and the factors that make up for what was dropped: none,
  // one, or one for each of the N, as `scales` says. drop_block applies them.
  m.def(
      "drop_block_mask(Tensor input, Tensor rng_state, SymInt[] block, float gamma,"
      " bool share_channels, SymInt scales, float eps) -> (Tensor, Tensor)");
  m.def("drop_block(Tensor input, Tensor bits, Tensor scale, bool share_channels) -> Tensor");
  m.def(
      "drop_block_(Tensor(a!) input, Tensor bits, Tensor scale, bool share_channels) -> "
      "Tensor(a!)");

  // Matrices: input [rows, in], weight [out, in], grad_output [rows, out]. Row n uses mask
  // n / rows_per_mask. mask_bits are the stored masks, or None to draw them again.
  m.def("dropconnect_mask_bits(Tensor weight, Tensor rng_state, SymInt masks, float p) -> Tensor");
  m.def(
      "dropconnect_linear(Tensor input, Tensor weight, Tensor? bias, Tensor rng_state,"
      " Tensor? mask_bits, float p, SymInt rows_per_mask, bool rescale) -> Tensor");
  m.def(
      "dropconnect_linear_d_input(Tensor grad_output, Tensor weight, Tensor rng_state,"
      " Tensor? mask_bits, float p, SymInt rows_per_mask, bool rescale) -> Tensor");
  m.def(
      "dropconnect_linear_d_weight(Tensor grad_output, Tensor input, Tensor rng_state,"
      " Tensor? mask_bits, float p, SymInt rows_per_mask, bool rescale) -> Tensor");
  m.def(
      "dropconnect_linear_d_both(Tensor grad_output, Tensor input, Tensor weight,"
      " Tensor rng_state, Tensor? mask_bits, float p, SymInt rows_per_mask, bool rescale)"
      " -> (Tensor, Tensor)");
  m.def(
      "dropconnect_linear_d_bias(Tensor grad_output, Tensor rng_state, float p,"
      " SymInt rows_per_mask, bool rescale) -> Tensor");
}

namespace {

pybind11::dict build_facts() {
  pybind11::dict facts;
  facts["version"] = FUSED_DROPOUT_VERSION;
  facts["commit"] = FUSED_DROPOUT_COMMIT;
  facts["torch"] = TORCH_VERSION;
#if defined(__clang__)
  facts["compiler"] = "clang " __clang_version__;
#else
  facts["compiler"] = "gcc " __VERSION__;
#endif
  facts["cuda"] = FUSED_DROPOUT_CUDA_VERSION;
  facts["cuda_architectures"] = FUSED_DROPOUT_CUDA_ARCHITECTURES;
#if defined(__x86_64__)
  facts["isas"] = std::vector<std::string>{"avx512", "avx2", "plain"};
#else
  facts["isas"] = std::vector<std::string>{"plain"};
#endif
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts of fused_dropout; the operators are in torch.ops.fused_dropout.";
  m.def("build_facts", build_facts);
  m.def("available_isas", fused_dropout::available_isas);
  m.def("current_isa", [] { return std::string(fused_dropout::kernels().isa); });
  m.def("set_isa", fused_dropout::set_isa, pybind11::arg("name"));
}
