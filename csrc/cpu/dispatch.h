// Which instruction set the CPU kernels run on.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fused_dropout {

// Best first: those that this binary has and this processor can run.
std::vector<std::string> available_isas();

// The table in use: the best available one unless set_isa chose another.
const Kernels& kernels();

// Throws std::invalid_argument, naming what is available, for an ISA that is not.
void set_isa(const std::string& name);

}  // namespace fused_dropout
