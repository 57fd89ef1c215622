// A number that is known only at run time, as a constant.
#pragma once

#include <cstdint>
#include <type_traits>

#include "macros.h"

namespace fused_dropout {

// f(count), with `count`, 1 to kMost, as a std::integral_constant: loops that long are unrolled.
template <int kMost, class F>
FUSED_DROPOUT_INLINE auto with_constant(int64_t count, F f) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_constant<kMost - 1>(count, f);
  }
  return f(std::integral_constant<int, kMost>{});
}

}  // namespace fused_dropout
