// What the per-ISA translation units offer to the rest: one table of functions per instruction set,
// with a part for each op. The bodies are templates compiled once per ISA (isa_*.cpp); dispatch.cpp
// picks a table at run time.
#pragma once

#include "bias_act_dropout_add_kernels.h"
#include "drop_block_kernels.h"
#include "dropconnect_kernels.h"
#include "dropout_kernels.h"
#include "mask_kernels.h"
#include "noise_kernels.h"

namespace fused_dropout {

struct Kernels {
  const char* isa;
  MaskKernels mask;
  DropConnectKernels dropconnect;
  DropoutKernels dropout;
  NoiseKernels noise;
  GaussianDropoutKernels gaussian_dropout;
  GaussianNoiseKernels gaussian_noise;
  ConcreteDropoutKernels concrete_dropout;
  BiasActKernels bias_act;
  DropBlockKernels drop_block;
};

const Kernels& plain_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace fused_dropout
