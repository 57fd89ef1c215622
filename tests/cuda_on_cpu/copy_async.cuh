// Asynchronous copies to shared memory (cp.async) by inline PTX, and their model in the emulator.
// The emulator's own tests and those of the PTX interpreter use them. No kernel does yet; the first
// one that does takes the wrappers to csrc/cuda/compat.h.
#pragma once

#include "../../csrc/cuda/compat.h"

#if !defined(__CUDACC__)
#include "ptx_models.h"
#else

namespace fused_dropout {

// Starts copying `Bytes` (4, 8 or 16) from global to shared memory, both aligned to that many. Only
// the first `valid` bytes are read, the rest becomes zero. The thread may use the data after a
// commit and a wait, other threads after a barrier on top.
template <int Bytes>
FUSED_DROPOUT_DEVICE void copy_async(void* shared, const void* global, int valid = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const size_t from = __cvta_generic_to_global(global);
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(Bytes),
                 "r"(valid)
                 : "memory");
  }
}

// Closes a group: the copies that this thread started since the last commit.
FUSED_DROPOUT_DEVICE void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for all groups of this thread but the newest `Pending`.
template <int Pending>
FUSED_DROPOUT_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace fused_dropout

#endif
