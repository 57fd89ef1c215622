// What the kernels' side of the emulator asks of scheduler.cpp and memory.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"

inline uint3 threadIdx;
inline uint3 blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;

namespace emulator {

constexpr int kWarpLanes = 32;
constexpr int kMaxThreads = 1024;                 // of a block
constexpr size_t kStaticSharedBytes = 48 * 1024;  // the most that a kernel may declare
constexpr size_t kSharedBytes = 227 * 1024;       // the most that a block may have, on sm_90

// Where in a kernel file something was called: a default argument `Location where = here()`.
struct Location {
  const char* file;
  int line;
};

constexpr Location here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return {file, line};
}

constexpr int kFailureStatus = 77;

// Reports a fault of the current CUDA thread and ends the process with kFailureStatus.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(Location where, const char* format,
                                                             ...);

// ---- Barriers --------------------------------------------------------------------------------

enum class Vote { kNone, kCount, kAll, kAny };

// Waits for all threads of the block and returns the vote on their predicates.
int block_barrier(Vote vote, bool predicate, Location where);

enum class WarpOp { kSync, kVote, kShuffle, kShuffleUp, kShuffleDown, kShuffleXor };

struct Meeting {
  uint32_t lanes;  // that took part
  uint64_t value[kWarpLanes];
};

// Waits for all lanes of `mask` that have not returned and hands each the values of all.
Meeting meet(WarpOp op, uint32_t mask, uint64_t value, Location where);

int lane();  // of the current thread in its warp

// ---- Memory ----------------------------------------------------------------------------------

// This block's copy of a static shared variable, identified by any address of its own.
void* static_shared(const void* variable, size_t bytes);
void* dynamic_shared();

// __threadfence, and what atomics must know about fences; see atomics.h.
void fence();
bool fenced();
void note_atomic(const void* address);

struct AsyncCopy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;
  int valid;  // bytes to be read, the rest is zero
};

// A thread's queue of asynchronous copies. take_copy gives the next one that is to land when all
// groups but the newest `pending` have to have landed, and false when there is none.
void queue_copy(const AsyncCopy& copy, Location where);
void commit_copies();
bool take_copy(int pending, AsyncCopy* copy);

// ---- Launches --------------------------------------------------------------------------------

// Runs body(arguments) as every thread of the grid; returns when all have finished.
cudaError_t run_grid(const char* kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                     void (*body)(void*), void* arguments);

enum class Order { kForward, kReverse, kRandom };

void set_schedule(Order order, uint64_t seed);  // of the launches to come
uint64_t launch_count();                        // so far

}  // namespace emulator
