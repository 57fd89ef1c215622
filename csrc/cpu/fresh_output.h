// Memory for large results.
#pragma once

#include "../torch_abi.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_dropout {

// A fresh tensor on huge pages, where the system grants them: a result of 64 MiB otherwise costs
// 16384 page faults, which take several times as long as computing it.
inline Tensor on_huge_pages(Tensor out) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t bytes = static_cast<uintptr_t>(out.numel()) * out.element_size();
  if (bytes < kHugePage) return out;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + bytes) / kHugePage * kHugePage;
  // A refusal changes nothing but the speed.
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return out;
}

inline Tensor fresh_output(const Tensor& like) { return on_huge_pages(new_like(like)); }

}  // namespace fused_dropout
