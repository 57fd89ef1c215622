// What the CPU bindings of the ops on continuous noise share.
#pragma once

#include <algorithm>

#include "../common/noise.h"
#include "../ops/checks.h"
#include "noise_run.h"
#include "parallel.h"

namespace fused_dropout {

constexpr int64_t kGrainBlocks = 64;  // a task's 8192 elements take about 10 us

inline MaskRule noise_rule_from_cpu_state(const Tensor& rng_state) {
  const SeedAndOffset state = read_cpu_state(rng_state);
  return make_noise_rule(state.seed, state.offset);
}

// Elements `first`, `first` + 1, ... of a contiguous tensor.
inline const void* elements_from(const Tensor& tensor, int64_t first) {
  return data_of<char>(tensor) + first * static_cast<int64_t>(tensor.element_size());
}
inline void* mutable_elements_from(const Tensor& tensor, int64_t first) {
  return mutable_data_of<char>(tensor) + first * static_cast<int64_t>(tensor.element_size());
}

// Calls run(noise_run, first_element) for stretches of `count` elements, on all threads.
template <class F>
void parallel_noise(const MaskRule& rule, int64_t count, F run) {
  parallel_for(0, group_count(count), kGrainBlocks, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kGroupColumns;
    const int64_t last = std::min(count, end * kGroupColumns);
    run(NoiseRun{rule, static_cast<uint64_t>(begin), last - first}, first);
  });
}

}  // namespace fused_dropout
