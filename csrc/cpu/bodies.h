// Every op's body, for the translation unit of an instruction set (isa_*.cpp).
#pragma once

#include "drop_block_body.h"
#include "dropconnect_body.h"
#include "dropout_body.h"
#include "kernels.h"
#include "mask_body.h"

namespace fused_dropout {
namespace {

Kernels make_kernels(const char* isa) {
  return {isa, make_mask_kernels(), make_dropconnect_kernels(), make_dropout_kernels(),
          make_drop_block_kernels()};
}

}  // namespace
}  // namespace fused_dropout
