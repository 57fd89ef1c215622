// Atomics and fences of CUDA C++.
//
// CUDA's atomics are relaxed: they order nothing else. Work is handed to another block by a fence
// before the giver's atomic and a fence after the taker's. TSan does not understand free-standing
// fences, so they are put into terms that it does: after a fence, this thread's atomics release; a
// fence acquires what this thread's atomics before it have touched.
#pragma once

#include <cstring>

#include "runtime.h"

inline void __threadfence() { emulator::fence(); }
inline void __threadfence_block() { emulator::fence(); }

namespace emulator {

template <class T>
bool compare_and_swap(T* address, T* expected, T desired) {
  if (fenced()) {
    return __atomic_compare_exchange(address, expected, &desired, false, __ATOMIC_RELEASE,
                                     __ATOMIC_RELAXED);
  }
  return __atomic_compare_exchange(address, expected, &desired, false, __ATOMIC_RELAXED,
                                   __ATOMIC_RELAXED);
}

// Replaces *address by change(*address) and returns the old value.
template <class T, class Change>
T atomic_update(T* address, Change change) {
  T old;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  while (!compare_and_swap(address, &old, static_cast<T>(change(old)))) {
  }
  note_atomic(address);
  return old;
}

}  // namespace emulator

template <class T>
T atomicAdd(T* address, T value) {
  return emulator::atomic_update(address, [value](T old) { return old + value; });
}
template <class T>
T atomicMax(T* address, T value) {
  return emulator::atomic_update(address, [value](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, T value) {
  return emulator::atomic_update(address, [value](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T* address, T value) {
  return emulator::atomic_update(address, [value](T old) { return old | value; });
}
template <class T>
T atomicExch(T* address, T value) {
  return emulator::atomic_update(address, [value](T) { return value; });
}
// Counts up to `limit` and starts again at 0.
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return emulator::atomic_update(address,
                                 [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}
template <class T>
T atomicCAS(T* address, T expected, T desired) {
  return emulator::atomic_update(
      address, [expected, desired](T old) { return old == expected ? desired : old; });
}
