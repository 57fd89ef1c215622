#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if EMULATOR_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#if EMULATOR_TSAN
#include <sanitizer/tsan_interface.h>
#endif

// Sanitizers make frames several times larger. Pages that are never touched cost nothing.
#if EMULATOR_ASAN || EMULATOR_TSAN
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif

// ---- Switching contexts: switch_context saves the registers that a callee must preserve on the
// stack, the stack pointer in *save, and continues where `load` was saved.

#if defined(__x86_64__) && !EMULATOR_UCONTEXT

extern "C" void emulator_switch_context(void** save, void* load);
asm(R"(
.text
.type emulator_switch_context,@function
emulator_switch_context:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_context,.-emulator_switch_context
)");

static void switch_context(void** save, void* load) { emulator_switch_context(save, load); }

static void* new_context(char* stack, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // entry's return address, which also aligns its frame
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  return top;
}

#else  // any other processor: slower, by a system call per switch

#include <ucontext.h>

static void switch_context(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}

static void* new_context(char* stack, void (*entry)()) {
  auto* context = reinterpret_cast<ucontext_t*>(stack);  // at the far end of the stack
  getcontext(context);
  context->uc_stack.ss_sp = stack + sizeof *context;
  context->uc_stack.ss_size = kStackBytes - sizeof *context;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

#endif

namespace emulator {
namespace {

struct Scheduler {
  void* context = nullptr;
  void* tsan = nullptr;
  void* asan_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
};
Scheduler scheduler;

void (*entry_point)();

void begin_fiber() {
#if EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack_bottom, &scheduler.stack_bytes);
#endif
  entry_point();
}

char* map_stack() {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, kStackBytes + guard, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("cannot map a stack");
    std::abort();
  }
  mprotect(memory, guard, PROT_NONE);  // an overflow faults instead of corrupting a neighbour
  return static_cast<char*>(memory) + guard;
}

}  // namespace

void Fiber::start(void (*entry)()) {
  if (!stack_) {
    stack_ = map_stack();
#if EMULATOR_TSAN
    tsan_ = __tsan_create_fiber(0);
    if (!scheduler.tsan) scheduler.tsan = __tsan_get_current_fiber();
#endif
  }
  entry_point = entry;
  context_ = new_context(stack_, begin_fiber);
}

void Fiber::resume() {
#if EMULATOR_ASAN
  __sanitizer_start_switch_fiber(&scheduler.asan_stack, stack_, kStackBytes);
#endif
#if EMULATOR_TSAN
  __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  switch_context(&scheduler.context, context_);
#if EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(scheduler.asan_stack, nullptr, nullptr);
#endif
}

void Fiber::switch_to_scheduler([[maybe_unused]] bool leaving) {
#if EMULATOR_ASAN
  __sanitizer_start_switch_fiber(leaving ? nullptr : &asan_stack_, scheduler.stack_bottom,
                                 scheduler.stack_bytes);
#endif
#if EMULATOR_TSAN
  __tsan_switch_to_fiber(scheduler.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  switch_context(&context_, scheduler.context);
#if EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(asan_stack_, &scheduler.stack_bottom, &scheduler.stack_bytes);
#endif
}

void Fiber::suspend() { switch_to_scheduler(false); }

void Fiber::leave() {
  switch_to_scheduler(true);
  std::abort();  // not reached
}

#if EMULATOR_TSAN
void release(void* sync) { __tsan_release(sync); }
void acquire(const void* sync) { __tsan_acquire(const_cast<void*>(sync)); }
#else
void release(void*) {}
void acquire(const void*) {}
#endif

}  // namespace emulator
