// The kernels in plain C++, for every processor.
#include "prelude.h"

namespace fused_dropout {
constexpr Isa kIsa = Isa::kPlain;
}

#include "kernels_for.h"
#include "vectors_plain.h"

#include "group_masks_in_order.h"

#include "vectors.h"  // after the operations that it describes

#include "simd_ops.h"  // written by setup.py: all files of ops/
