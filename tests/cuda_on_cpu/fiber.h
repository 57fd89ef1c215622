// A CUDA thread's stack and registers, and what TSan has to know about them.
#pragma once

#include <cstddef>

namespace emulator {

class Fiber {
 public:
  void start(void (*entry)());  // makes it run entry() from the beginning when it is resumed next
  void resume();                // from the scheduler: runs the fiber until it suspends
  void suspend();               // from the fiber: back to the scheduler
  [[noreturn]] void leave();    // likewise, for good

 private:
  void switch_to_scheduler(bool leaving);

  char* stack_ = nullptr;
  void* context_ = nullptr;
  void* asan_stack_ = nullptr;
  void* tsan_ = nullptr;
};

// To TSan, what a fiber does it does in order, even if it is a thread of one block and then of
// another. So thread t of block b does not always run as fiber t, but as (t + kFiberShift * b) %
// (threads + kSpareFibers): threads with the same number meet again after as many blocks as there
// are fibers.
#if EMULATOR_TSAN
constexpr int kSpareFibers = 64;
constexpr int kFiberShift = 17;
#else
constexpr int kSpareFibers = 0;
constexpr int kFiberShift = 0;
#endif

// A happens-before edge for TSan: what was done before release(p) comes before what is done after
// an acquire(p) that follows it. Nothing in other builds.
void release(void* sync);
void acquire(const void* sync);

}  // namespace emulator
