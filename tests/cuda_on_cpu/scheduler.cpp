// Runs a grid: blocks one after another, the threads of a block as fibers. Nothing in here is
// preemptive; a thread runs until it waits at a barrier or a warp operation, or returns.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "fiber.h"
#include "memory.h"
#include "runtime.h"

namespace emulator {
namespace {

constexpr int kMaxWarps = kMaxThreads / kWarpLanes;
// What stands in shared memory that nobody has written to. As floats NaN and 8e37, as integers -1
// and a large number: what one of them happens to suit, the other does not.
constexpr unsigned char kNaNPoison = 0xFF;
constexpr unsigned char kLargePoison = 0x7E;

constexpr uint64_t kMaxBlocks = 1 << 24;
constexpr int kMaxSlots = kWarpLanes + 1;  // one more than there can be masks waited for
constexpr unsigned kMaxCopies = 256;       // in flight, of a thread
constexpr int kMaxAtomics = 8;             // addresses that a fence acquires, the newest ones

// Where the lanes of a mask meet. Meetings alternate between two sets of results: a lane cannot
// come to the next but one before all have left the last.
struct Slot {
  uint32_t mask;
  uint32_t arrived;
  WarpOp op;
  Location where;
  unsigned phase;
  int unread;  // results of the last meeting that lanes have yet to fetch
  Meeting meeting[2];
  char sync[2];
};

struct Warp {
  uint32_t running;  // lanes that exist and have not returned
  int slots_used;
  Slot slots[kMaxSlots];
};

// A ring: copy number n stands at n % kMaxCopies.
struct CopyQueue {
  AsyncCopy copies[kMaxCopies];
  int groups[kMaxCopies];
  unsigned first;
  unsigned end;
  int committed;  // groups
};

enum class State { kReady, kAtBarrier, kInWarp, kReturned };

struct Thread {
  Fiber* fiber;
  int number;
  uint3 index;
  State state;
  Location where;  // it waits
  Slot* slot;
  CopyQueue copies;
  bool fenced;
  const void* atomics[kMaxAtomics];
  int atomic_count;
};

struct Barrier {
  int arrived;
  Vote vote;
  Location where;
  unsigned phase;
  int yes[2];  // votes, kept until the next barrier but one
  char sync[2];
};

Thread threads[kMaxThreads];
Fiber fibers[kMaxThreads + kSpareFibers];
Warp warps[kMaxWarps];
Barrier barrier;
Thread* current;
int block_threads;
int running_threads;

Order order = Order::kForward;
uint64_t random_state = 1;
uint64_t launches;

const char* kernel = "";
void (*kernel_body)(void*);
void* kernel_arguments;
char block_start_sync;
char grid_end_sync;

uint64_t random_number() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

bool same(Location a, Location b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

// ---- Waiting -----------------------------------------------------------------------------------

void wait_as(State state, Location where) {
  current->state = state;
  current->where = where;
}

// Lets others run unless the wait is over already. The random schedule lets them run anyway.
void yield_unless_ready() {
  if (current->state != State::kReady || order == Order::kRandom) current->fiber->suspend();
}

void complete_barrier() {
  barrier.arrived = 0;
  ++barrier.phase;
  for (int i = 0; i < block_threads; ++i) {
    if (threads[i].state == State::kAtBarrier) threads[i].state = State::kReady;
  }
}

// Ends the meeting if all lanes that are still running have come.
void complete_meeting(int warp, Slot* slot) {
  const uint32_t needed = slot->mask & warps[warp].running;
  if (!slot->arrived || (slot->arrived & needed) != needed) return;
  slot->meeting[slot->phase & 1].lanes = slot->arrived;
  slot->unread = __builtin_popcount(slot->arrived);
  slot->arrived = 0;
  ++slot->phase;
  for (int i = warp * kWarpLanes; i < block_threads && i < (warp + 1) * kWarpLanes; ++i) {
    if (threads[i].state == State::kInWarp && threads[i].slot == slot) {
      threads[i].state = State::kReady;
    }
  }
}

Slot* slot_for(Warp* warp, uint32_t mask) {
  Slot* unused = nullptr;
  for (int i = 0; i < warp->slots_used; ++i) {
    Slot* const slot = &warp->slots[i];
    if (slot->mask == mask) return slot;
    if (!slot->arrived && !slot->unread) unused = slot;
  }
  if (warp->slots_used < kMaxSlots) unused = &warp->slots[warp->slots_used++];
  unused->mask = mask;
  unused->arrived = 0;
  unused->unread = 0;
  return unused;
}

// ---- A thread's life
// -----------------------------------------------------------------------------

void run_thread() {
  acquire(&block_start_sync);
  kernel_body(kernel_arguments);
  if (barrier.arrived) {
    fail(barrier.where, "thread %d returns while %d threads wait at this barrier", current->number,
         barrier.arrived);
  }
  release(&grid_end_sync);
  wait_as(State::kReturned, {"", 0});
  --running_threads;
  const int number = current->number / kWarpLanes;
  Warp& warp = warps[number];
  warp.running &= ~(1u << current->number % kWarpLanes);
  for (int i = 0; i < warp.slots_used; ++i) complete_meeting(number, &warp.slots[i]);
  current->fiber->leave();
}

uint3 thread_index(unsigned number) {
  return {number % blockDim.x, number / blockDim.x % blockDim.y,
          number / (blockDim.x * blockDim.y)};
}

void start_thread(int number, int64_t block) {
  Thread& thread = threads[number];
  thread.number = number;
  thread.index = thread_index(static_cast<unsigned>(number));
  thread.state = State::kReady;
  thread.copies.first = thread.copies.end = 0;
  thread.copies.committed = 0;
  thread.fenced = false;
  thread.atomic_count = 0;
  thread.fiber = &fibers[(number + kFiberShift * block) % (block_threads + kSpareFibers)];
  thread.fiber->start(run_thread);
}

void resume(Thread* thread) {
  current = thread;
  threadIdx = thread->index;
  thread->fiber->resume();
}

// ---- A block
// ---------------------------------------------------------------------------------------

// Gives each lane that is ready a turn; false when none was.
bool run_lanes(int warp) {
  const int first = warp * kWarpLanes;
  const int lanes = block_threads - first < kWarpLanes ? block_threads - first : kWarpLanes;
  const int scramble =
      order == Order::kRandom && lanes == kWarpLanes ? static_cast<int>(random_number() % 32) : 0;
  bool ran = false;
  for (int i = 0; i < lanes; ++i) {
    const int lane = order == Order::kReverse ? lanes - 1 - i : i ^ scramble;
    if (threads[first + lane].state == State::kReady) {
      resume(&threads[first + lane]);
      ran = true;
    }
  }
  return ran;
}

// Runs each warp until it cannot go on, which shows more races than taking turns would; the random
// schedule interrupts it now and then.
bool run_warps(const std::vector<int>& sequence) {
  bool ran = false;
  for (const int warp : sequence) {
    while (run_lanes(warp)) {
      ran = true;
      if (order == Order::kRandom && random_number() % 4 == 0) break;
    }
  }
  return ran;
}

void shuffle_sequence(std::vector<int>* sequence) {
  for (size_t i = sequence->size(); i > 1; --i) {
    std::swap((*sequence)[i - 1], (*sequence)[random_number() % i]);
  }
}

std::vector<int> make_sequence(int count) {
  std::vector<int> sequence(static_cast<size_t>(count));
  std::iota(sequence.begin(), sequence.end(), 0);
  if (order == Order::kReverse) std::reverse(sequence.begin(), sequence.end());
  if (order == Order::kRandom) shuffle_sequence(&sequence);
  return sequence;
}

[[noreturn]] void report_deadlock() {
  Location where = {"", 0};
  for (int i = 0; i < block_threads; ++i) {
    const Thread& thread = threads[i];
    if (thread.state == State::kReturned || (where.line && same(thread.where, where))) continue;
    where = thread.where;
    std::fprintf(stderr, "  thread %d waits at %s:%d for %s\n", i, where.file, where.line,
                 thread.state == State::kAtBarrier ? "its block" : "its warp");
  }
  fail(where, "deadlock: %d threads wait for others that never come", running_threads);
}

void run_block(int64_t block, size_t dynamic_bytes) {
  begin_block_memory(dynamic_bytes, order == Order::kReverse ? kLargePoison : kNaNPoison);
  barrier = Barrier{};
  running_threads = block_threads;
  const int warp_count = (block_threads + kWarpLanes - 1) / kWarpLanes;
  for (int i = 0; i < warp_count; ++i) {
    const int lanes = block_threads - i * kWarpLanes;
    warps[i].running = lanes >= kWarpLanes ? ~0u : (1u << lanes) - 1;
    warps[i].slots_used = 0;
  }
  for (int i = 0; i < block_threads; ++i) start_thread(i, block);
  release(&block_start_sync);
  std::vector<int> sequence = make_sequence(warp_count);
  while (running_threads) {
    if (!run_warps(sequence)) report_deadlock();
    if (order == Order::kRandom) shuffle_sequence(&sequence);
  }
}

uint3 block_index(unsigned number) {
  return {number % gridDim.x, number / gridDim.x % gridDim.y, number / (gridDim.x * gridDim.y)};
}

bool valid_launch(dim3 grid, dim3 block) {
  constexpr unsigned kMaxGridYZ = 65535;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  return grid.x && grid.y && grid.z && grid.x <= INT32_MAX && grid.y <= kMaxGridYZ &&
         grid.z <= kMaxGridYZ && threads && threads <= kMaxThreads && block.z <= 64;
}

}  // namespace

// ---- runtime.h
// -------------------------------------------------------------------------------------

void fail(Location where, const char* format, ...) {
  std::string name = kernel;  // "... kKernel = <name>]"
  const size_t start = name.find("= ");
  if (start != std::string::npos) name = name.substr(start + 2, name.size() - start - 3);
  std::fprintf(stderr, "EMULATOR: kernel %s block (%u, %u, %u) thread (%u, %u, %u) at %s:%d: ",
               name.c_str(), blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y,
               threadIdx.z, where.file, where.line);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  std::_Exit(kFailureStatus);
}

int lane() { return current->number % kWarpLanes; }

int block_barrier(Vote vote, bool predicate, Location where) {
  if (running_threads != block_threads) {
    fail(where, "%d of the block's %d threads have returned before this barrier",
         block_threads - running_threads, block_threads);
  }
  const unsigned phase = barrier.phase & 1;
  if (barrier.arrived == 0) {
    barrier.vote = vote;
    barrier.where = where;
    barrier.yes[phase] = 0;
  } else if (barrier.vote != vote || !same(barrier.where, where)) {
    fail(where, "other threads of the block wait at another barrier, %s:%d", barrier.where.file,
         barrier.where.line);
  }
  barrier.yes[phase] += predicate;
  release(&barrier.sync[phase]);
  wait_as(State::kAtBarrier, where);
  if (++barrier.arrived == block_threads) complete_barrier();
  yield_unless_ready();
  acquire(&barrier.sync[phase]);
  const int yes = barrier.yes[phase];
  return vote == Vote::kCount ? yes : vote == Vote::kAll ? yes == block_threads : yes > 0;
}

Meeting meet(WarpOp op, uint32_t mask, uint64_t value, Location where) {
  if (!(mask >> lane() & 1)) fail(where, "lane %d is not in its own mask %08x", lane(), mask);
  const int warp = current->number / kWarpLanes;
  Slot* const slot = slot_for(&warps[warp], mask);
  if (!slot->arrived) {
    slot->op = op;
    slot->where = where;
  } else if (slot->op != op || !same(slot->where, where)) {
    fail(where, "other lanes of the mask %08x wait at another warp operation, %s:%d", mask,
         slot->where.file, slot->where.line);
  }
  const unsigned phase = slot->phase & 1;
  slot->arrived |= 1u << lane();
  slot->meeting[phase].value[lane()] = value;
  if (op == WarpOp::kSync) release(&slot->sync[phase]);
  wait_as(State::kInWarp, where);
  current->slot = slot;
  complete_meeting(warp, slot);
  yield_unless_ready();
  if (op == WarpOp::kSync) acquire(&slot->sync[phase]);
  --slot->unread;
  return slot->meeting[phase];
}

void fence() {
  current->fenced = true;
  for (int i = 0; i < current->atomic_count; ++i) acquire(current->atomics[i]);
}

bool fenced() { return current->fenced; }

void note_atomic(const void* address) {
  int& count = current->atomic_count;
  for (int i = 0; i < count; ++i) {
    if (current->atomics[i] == address) return;
  }
  if (count == kMaxAtomics) {
    for (int i = 1; i < count; ++i) current->atomics[i - 1] = current->atomics[i];
    --count;
  }
  current->atomics[count++] = address;
}

void queue_copy(const AsyncCopy& copy, Location where) {
  CopyQueue& queue = current->copies;
  if (queue.end - queue.first == kMaxCopies) {
    fail(where, "more than %u copies in flight", kMaxCopies);
  }
  queue.copies[queue.end % kMaxCopies] = copy;
  queue.groups[queue.end++ % kMaxCopies] = queue.committed;
}

void commit_copies() { ++current->copies.committed; }

bool take_copy(int pending, AsyncCopy* copy) {
  CopyQueue& queue = current->copies;
  if (queue.first == queue.end) return false;
  if (queue.groups[queue.first % kMaxCopies] >= queue.committed - pending) return false;
  *copy = queue.copies[queue.first++ % kMaxCopies];
  return true;
}

void set_schedule(Order new_order, uint64_t seed) {
  order = new_order;
  random_state = seed * 0x9E3779B97F4A7C15u + 1;
  if (random_state == 0) random_state = 1;
}

uint64_t launch_count() { return launches; }

cudaError_t run_grid(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                     void (*body)(void*), void* arguments) {
  if (!valid_launch(grid, block)) return cudaErrorInvalidConfiguration;
  if (dynamic_shared_bytes > kSharedBytes) return cudaErrorInvalidValue;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (blocks > kMaxBlocks) fail(here(), "a grid of %zu blocks would take hours", size_t{blocks});
  ++launches;
  gridDim = grid;
  blockDim = block;
  block_threads = static_cast<int>(block.x * block.y * block.z);
  kernel = name;
  kernel_body = body;
  kernel_arguments = arguments;
  const std::vector<int> sequence = make_sequence(static_cast<int>(blocks));
  for (size_t i = 0; i < sequence.size(); ++i) {
    blockIdx = block_index(static_cast<unsigned>(sequence[i]));
    run_block(static_cast<int64_t>(i), dynamic_shared_bytes);
  }
  acquire(&grid_end_sync);
  end_grid_memory();
  return cudaSuccess;
}

}  // namespace emulator
