// Barriers, votes and shuffles of CUDA C++.
#pragma once

#include <type_traits>

#include "runtime.h"

inline void __syncthreads(emulator::Location where = emulator::here()) {
  emulator::block_barrier(emulator::Vote::kNone, false, where);
}
inline int __syncthreads_count(int predicate, emulator::Location where = emulator::here()) {
  return emulator::block_barrier(emulator::Vote::kCount, predicate != 0, where);
}
inline int __syncthreads_and(int predicate, emulator::Location where = emulator::here()) {
  return emulator::block_barrier(emulator::Vote::kAll, predicate != 0, where);
}
inline int __syncthreads_or(int predicate, emulator::Location where = emulator::here()) {
  return emulator::block_barrier(emulator::Vote::kAny, predicate != 0, where);
}

inline void __syncwarp(unsigned mask = ~0u, emulator::Location where = emulator::here()) {
  emulator::meet(emulator::WarpOp::kSync, mask, 0, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              emulator::Location where = emulator::here()) {
  const emulator::Meeting all =
      emulator::meet(emulator::WarpOp::kVote, mask, predicate != 0, where);
  unsigned ballot = 0;
  for (int lane = 0; lane < emulator::kWarpLanes; ++lane) {
    if (all.lanes >> lane & 1) ballot |= static_cast<unsigned>(all.value[lane]) << lane;
  }
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate, emulator::Location where = emulator::here()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulator::Location where = emulator::here()) {
  return __ballot_sync(mask, !predicate, where) == 0;
}

namespace emulator {

// The value of lane `source`, which must have taken part.
template <class T>
T shuffle(WarpOp op, unsigned mask, T value, int source, Location where) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof value);
  const Meeting all = meet(op, mask, word, where);
  if (!(all.lanes >> source & 1)) {
    fail(where, "a shuffle reads lane %d, which does not take part (lanes %08x)", source,
         all.lanes);
  }
  __builtin_memcpy(&value, &all.value[source], sizeof value);
  return value;
}

// The first lane of the segment of `width` lanes (a power of two) that `lane` belongs to.
inline int segment(int lane, int width) { return lane & ~(width - 1); }

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = emulator::kWarpLanes,
              emulator::Location where = emulator::here()) {
  const int from = emulator::segment(emulator::lane(), width) + (source & (width - 1));
  return emulator::shuffle(emulator::WarpOp::kShuffle, mask, value, from, where);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = emulator::kWarpLanes,
                 emulator::Location where = emulator::here()) {
  const int lane = emulator::lane();
  const int from = lane - static_cast<int>(delta);
  const bool inside = from >= emulator::segment(lane, width);
  return emulator::shuffle(emulator::WarpOp::kShuffleUp, mask, value, inside ? from : lane, where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = emulator::kWarpLanes,
                   emulator::Location where = emulator::here()) {
  const int lane = emulator::lane();
  const int from = lane + static_cast<int>(delta);
  const bool inside = from < emulator::segment(lane, width) + width;
  return emulator::shuffle(emulator::WarpOp::kShuffleDown, mask, value, inside ? from : lane,
                           where);
}

// A lane may read from its own segment and from earlier ones.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = emulator::kWarpLanes,
                  emulator::Location where = emulator::here()) {
  const int lane = emulator::lane();
  const int from = lane ^ lane_mask;
  const bool inside = from < emulator::segment(lane, width) + width;
  return emulator::shuffle(emulator::WarpOp::kShuffleXor, mask, value, inside ? from : lane, where);
}
