// What the inline PTX of csrc/cuda/compat.h does, in C++. All reads and writes of the kernel's
// memory are made here, in instrumented code, where the sanitizers see them.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace emulator {

// The copy may read and write at any time from here to the wait. The reads here let ASan point at
// the line that asked for them; the bytes written are those that nobody may rely on.
inline void begin_copy(const AsyncCopy& copy, Location where) {
  const auto addresses = reinterpret_cast<uintptr_t>(copy.to) |
                         (copy.valid > 0 ? reinterpret_cast<uintptr_t>(copy.from) : 0);
  if (addresses % static_cast<uintptr_t>(copy.bytes) != 0) {
    fail(where, "copy_async of %d bytes between addresses that are not aligned to as many",
         copy.bytes);
  }
  if (copy.valid < 0 || copy.valid > copy.bytes) {
    fail(where, "copy_async of %d valid bytes out of %d", copy.valid, copy.bytes);
  }
  for (int i = 0; i < copy.valid; ++i)
    static_cast<void>(*const_cast<const volatile unsigned char*>(copy.from + i));
  for (int i = 0; i < copy.bytes; ++i) copy.to[i] = 0xFF;
  queue_copy(copy, where);
}

inline void land_copy(const AsyncCopy& copy) {
  for (int i = 0; i < copy.bytes; ++i) copy.to[i] = i < copy.valid ? copy.from[i] : 0;
}

}  // namespace emulator

namespace fused_dropout {

inline void hold(uint32_t&) {}
inline void keep_branch() {}

inline void store_16_bytes(void* to, uint4 words) { *static_cast<uint4*>(to) = words; }

template <int Bytes>
void copy_async(void* shared, const void* global, int valid = Bytes,
                emulator::Location where = emulator::here()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::begin_copy({static_cast<unsigned char*>(shared),
                        static_cast<const unsigned char*>(global), Bytes, valid},
                       where);
}

inline void copy_async_commit() { emulator::commit_copies(); }

template <int Pending>
void copy_async_wait() {
  emulator::AsyncCopy copy;
  while (emulator::take_copy(Pending, &copy)) emulator::land_copy(copy);
}

}  // namespace fused_dropout
