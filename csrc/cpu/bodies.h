// Every op's body, for the translation unit of an instruction set (isa_*.cpp).
#pragma once

#include "bias_act_dropout_add_body.h"
#include "concrete_dropout_body.h"
#include "drop_block_body.h"
#include "dropconnect_body.h"
#include "dropout_body.h"
#include "gaussian_dropout_body.h"
#include "gaussian_noise_body.h"
#include "kernels.h"
#include "mask_body.h"
#include "noise_body.h"

namespace fused_dropout {
namespace {

Kernels make_kernels(const char* isa) {
  return {isa,
          make_mask_kernels(),
          make_dropconnect_kernels(),
          make_dropout_kernels(),
          make_noise_kernels(),
          make_gaussian_dropout_kernels(),
          make_gaussian_noise_kernels(),
          make_concrete_dropout_kernels(),
          make_bias_act_kernels(),
          make_drop_block_kernels()};
}

}  // namespace
}  // namespace fused_dropout
