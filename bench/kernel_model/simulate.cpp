// Simulates one multiprocessor that issues the instructions of traces (simulate.py says what it
// stands on). Times are in cycles.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

namespace {

constexpr int kSchedulers = 4;
constexpr int kScoreboards = 6;

enum Pipe : int32_t { kNoPipe, kFma, kFmaHeavy, kAlu, kSpecial, kDouble, kMemory, kUniform, kPipes };

enum Kind : int32_t {
  kFixed,           // the stall count covers its latency
  kVariable,        // its scoreboard is released after `latency`
  kShared,          // as kVariable, behind its wavefronts
  kGlobalLoad,
  kGlobalStore,
  kCopy,            // from global to shared memory, waited for by group
  kCommit,          // ends a group of copies
  kAwaitCopies,     // until at most `latency` groups are on their way
  kBarrier,
};

// Why a warp did not issue.
enum Wait : int32_t { kStall, kGlobal, kOther, kBarrierWait, kBusy, kWaits };

}  // namespace

extern "C" {

struct Instruction {
  int32_t pipe;
  int32_t pipe_cycles;
  int32_t kind;
  int32_t latency;
  int32_t stall;
  int32_t write_barrier;  // scoreboards; those past the last are none
  int32_t read_barrier;
  int32_t wait_mask;
};

// What one warp of a block executes. Arrays of accesses have an element for each instruction that
// accesses memory, in their order.
struct WarpTrace {
  int64_t count;
  const int32_t* instructions;  // numbers
  const int32_t* wavefronts;
  const int32_t* l2;  // sectors, those of DRAM among them
  const int32_t* dram;
};

struct Machine {
  double l2_bytes;    // a cycle
  double dram_bytes;  // a cycle, of this multiprocessor
  int32_t l1_latency;
  int32_t l2_latency;
  int32_t dram_latency;
  int32_t operand_latency;  // until an instruction that accesses memory has read its operands
  int32_t barrier_latency;
  int32_t branch_cycles;  // of a jump, besides its stall count
};

struct Result {
  int64_t cycles;
  int64_t issued;
  int64_t wavefronts;
  int64_t waits[kWaits];  // cycles of warps
};

}  // extern "C"

namespace {

constexpr double kSectorBytes = 32;

struct Warp {
  const WarpTrace* trace = nullptr;
  int block = 0;
  int64_t next = 0;    // in the trace
  int64_t access = 0;  // the next one
  int64_t ready = 0;   // when the stall count has passed
  int64_t since = 0;   // when it issued last
  int64_t scoreboard[kScoreboards] = {};
  bool on_global[kScoreboards] = {};
  int64_t copies = 0;          // when those of the open group have arrived
  std::deque<int64_t> groups;  // when those of each closed group have
  bool at_barrier = false;
  int64_t barrier_wait = 0;
  int64_t age = 0;

  bool done() const { return next >= trace->count; }
};

struct Block {
  int waiting = 0;
  int running = 0;
  std::vector<Warp*> warps;
};

class Simulation {
 public:
  Simulation(const Instruction* code, const char* is_memory, const Machine& machine)
      : code_(code), is_memory_(is_memory), machine_(machine) {}

  Result run(const WarpTrace* traces, int warps, int variants, int64_t blocks, int resident) {
    traces_ = traces;
    warps_ = warps;
    variants_ = variants;
    left_ = blocks;
    blocks_.resize(static_cast<size_t>(resident));
    pool_.resize(static_cast<size_t>(resident) * static_cast<size_t>(warps));
    for (int slot = 0; slot < resident; ++slot) start_block(slot);
    while (running_ > 0) step();
    result_.cycles = std::max(now_, last_arrival_);
    return result_;
  }

 private:
  void start_block(int slot) {
    if (left_ == 0) return;
    --left_;
    Block& block = blocks_[static_cast<size_t>(slot)];
    block = Block{};
    const int64_t variant = started_++ % variants_;
    for (int w = 0; w < warps_; ++w) {
      const int place = slot * warps_ + w;
      Warp& warp = pool_[static_cast<size_t>(place)];
      warp = Warp{};
      warp.trace = &traces_[variant * warps_ + w];
      warp.block = slot;
      warp.ready = warp.since = now_;
      warp.age = ages_++;
      if (warp.done()) continue;
      block.warps.push_back(&warp);
      schedulers_[place % kSchedulers].push_back(&warp);
      ++block.running;
      ++running_;
    }
  }

  void step() {
    bool issued = false;
    int64_t soonest = INT64_MAX;
    for (int s = 0; s < kSchedulers; ++s) {
      Warp* best = nullptr;
      for (Warp* warp : schedulers_[s]) {
        if (warp->at_barrier) continue;
        const int64_t time = issue_time(*warp, s);
        if (time > now_) {
          soonest = std::min(soonest, time);
        } else if (best == nullptr || warp == last_[s] || (best != last_[s] && warp->age < best->age)) {
          best = warp;
        }
      }
      if (best != nullptr) {
        issue(*best, s);
        issued = true;
      }
    }
    // All warps at barriers cannot be: the last one releases the others.
    now_ = issued || soonest == INT64_MAX ? now_ + 1 : soonest;
  }

  int64_t scoreboards(const Warp& warp, const Instruction& instruction, bool* on_global) const {
    int64_t time = 0;
    for (int k = 0; k < kScoreboards; ++k) {
      if ((instruction.wait_mask >> k & 1) && warp.scoreboard[k] > time) {
        time = warp.scoreboard[k];
        *on_global = warp.on_global[k];
      }
    }
    if (instruction.kind == kAwaitCopies) {
      const int64_t groups = static_cast<int64_t>(warp.groups.size());
      if (groups > instruction.latency) {
        const int64_t last = warp.groups[static_cast<size_t>(groups - instruction.latency - 1)];
        if (last > time) time = last, *on_global = true;
      }
    }
    return time;
  }

  int64_t pipe_time(const Instruction& instruction, int s) const {
    const int64_t* const free = pipe_free_[s];
    if (instruction.pipe == kNoPipe) return 0;
    if (instruction.pipe == kFma) return std::min(free[kFma], free[kFmaHeavy]);
    return free[instruction.pipe];
  }

  int64_t issue_time(const Warp& warp, int s) const {
    const Instruction& instruction = code_[warp.trace->instructions[warp.next]];
    bool on_global = false;
    return std::max({warp.ready, scoreboards(warp, instruction, &on_global),
                     pipe_time(instruction, s)});
  }

  void occupy(const Instruction& instruction, int s) {
    int64_t* const free = pipe_free_[s];
    int pipe = instruction.pipe;
    if (pipe == kFma && free[kFma] > now_) pipe = kFmaHeavy;
    if (pipe != kNoPipe) free[pipe] = now_ + instruction.pipe_cycles;
  }

  void count_waits(const Warp& warp, const Instruction& instruction) {
    bool on_global = false;
    const int64_t stalled = warp.ready - warp.since - warp.barrier_wait;
    const int64_t waited =
        std::max<int64_t>(0, scoreboards(warp, instruction, &on_global) - warp.ready);
    result_.waits[kStall] += std::max<int64_t>(0, stalled - 1);
    result_.waits[kBarrierWait] += warp.barrier_wait;
    result_.waits[on_global ? kGlobal : kOther] += waited;
    result_.waits[kBusy] += now_ - warp.ready - waited;
  }

  void issue(Warp& warp, int s) {
    const int32_t number = warp.trace->instructions[warp.next];
    const Instruction& instruction = code_[number];
    count_waits(warp, instruction);
    occupy(instruction, s);
    last_[s] = &warp;
    ++result_.issued;
    ++warp.next;
    warp.since = now_;
    warp.barrier_wait = 0;
    warp.ready = now_ + std::max(1, instruction.stall);
    if (!warp.done() && warp.trace->instructions[warp.next] != number + 1) {
      warp.ready += machine_.branch_cycles;
    }
    if (is_memory_[number]) {
      access(warp, instruction);
    } else if (instruction.kind == kVariable) {
      release(warp, instruction, now_ + instruction.latency, now_ + machine_.operand_latency, false);
    } else if (instruction.kind == kCommit) {
      warp.groups.push_back(warp.groups.empty() ? warp.copies
                                                : std::max(warp.groups.back(), warp.copies));
      warp.copies = 0;
    }
    if (instruction.kind == kBarrier) arrive(warp);
    if (warp.done()) end(warp, s);
  }

  // Sets the instruction's scoreboards.
  void release(Warp& warp, const Instruction& instruction, int64_t written, int64_t read,
               bool on_global) {
    const int32_t places[] = {instruction.write_barrier, instruction.read_barrier};
    const int64_t times[] = {written, read};
    for (int k = 0; k < 2; ++k) {
      if (places[k] >= kScoreboards || times[k] <= warp.scoreboard[places[k]]) continue;
      warp.scoreboard[places[k]] = times[k];
      warp.on_global[places[k]] = on_global && k == 0;
    }
  }

  static double pass(double* free, int64_t start, double cycles) {
    *free = std::max(*free, static_cast<double>(start)) + cycles;
    return *free;
  }

  void access(Warp& warp, const Instruction& instruction) {
    const int64_t k = warp.access++;
    const int32_t wavefronts = warp.trace->wavefronts[k];
    if (wavefronts == 0) return;  // predicated off
    const int64_t start = static_cast<int64_t>(pass(&memory_free_, now_, wavefronts));
    result_.wavefronts += wavefronts;
    const int64_t read = start + machine_.operand_latency;
    if (instruction.kind == kShared) {
      release(warp, instruction, start + instruction.latency, read, false);
      return;
    }
    const bool stores = instruction.kind == kGlobalStore;
    const int64_t arrival = beyond_l1(warp.trace->l2[k], warp.trace->dram[k], start, stores);
    if (instruction.kind == kCopy) warp.copies = std::max(warp.copies, arrival);
    if (stores || instruction.kind == kCopy) {
      release(warp, instruction, read, read, false);
    } else {
      release(warp, instruction, arrival, read, true);
    }
    last_arrival_ = std::max(last_arrival_, arrival);
  }

  // When sectors have come from L2 and DRAM, or gone there.
  int64_t beyond_l1(int32_t l2, int32_t dram, int64_t start, bool stores) {
    double time = static_cast<double>(start + machine_.l1_latency);
    if (l2 > 0) {
      double* const free = stores ? &l2_write_free_ : &l2_free_;
      const double passed = pass(free, start, l2 * kSectorBytes / machine_.l2_bytes);
      time = stores ? passed : passed + machine_.l2_latency;
    }
    if (dram > 0) {
      const double passed = pass(&dram_free_, start, dram * kSectorBytes / machine_.dram_bytes);
      time = std::max(time, stores ? passed : passed + machine_.dram_latency);
    }
    return static_cast<int64_t>(time);
  }

  void arrive(Warp& warp) {
    Block& block = blocks_[static_cast<size_t>(warp.block)];
    warp.at_barrier = true;
    ++block.waiting;
    release_barrier(block);
  }

  void release_barrier(Block& block) {
    if (block.running == 0 || block.waiting < block.running) return;
    for (Warp* warp : block.warps) {
      if (!warp->at_barrier) continue;
      const int64_t time = std::max(warp->ready, now_ + machine_.barrier_latency);
      warp->barrier_wait = time - warp->ready;
      warp->ready = time;
      warp->at_barrier = false;
    }
    block.waiting = 0;
  }

  void end(Warp& warp, int s) {
    auto& warps = schedulers_[s];
    warps.erase(std::find(warps.begin(), warps.end(), &warp));
    last_[s] = nullptr;
    --running_;
    Block& block = blocks_[static_cast<size_t>(warp.block)];
    block.warps.erase(std::find(block.warps.begin(), block.warps.end(), &warp));
    if (--block.running == 0) {
      start_block(warp.block);
    } else {
      release_barrier(block);
    }
  }

  const Instruction* code_;
  const char* is_memory_;
  Machine machine_;
  const WarpTrace* traces_ = nullptr;
  int warps_ = 0;
  int variants_ = 0;
  int64_t left_ = 0;
  int64_t started_ = 0;
  int64_t ages_ = 0;
  int64_t now_ = 0;
  int64_t running_ = 0;
  int64_t last_arrival_ = 0;
  double memory_free_ = 0, l2_free_ = 0, l2_write_free_ = 0, dram_free_ = 0;
  int64_t pipe_free_[kSchedulers][kPipes] = {};
  Warp* last_[kSchedulers] = {};
  std::vector<Warp*> schedulers_[kSchedulers];
  std::vector<Block> blocks_;
  std::vector<Warp> pool_;
  Result result_{};
};

}  // namespace

// Runs `blocks` blocks, `resident` at a time. `traces` are those of `variants` blocks of `warps`
// warps each, which the blocks take in turn.
extern "C" void simulate(const Instruction* code, const char* is_memory, const Machine* machine,
                         const WarpTrace* traces, int32_t warps, int32_t variants, int64_t blocks,
                         int32_t resident, Result* result) {
  *result = Simulation(code, is_memory, *machine).run(traces, warps, variants, blocks, resident);
}
