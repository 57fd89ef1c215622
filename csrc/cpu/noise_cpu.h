// What the CPU bindings of the ops on continuous noise share.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "../checks.h"
#include "../common/noise.h"
#include "dispatch.h"

namespace fused_dropout {

constexpr int64_t kGrainBlocks = 64;  // a task's 8192 elements take about 10 us

inline MaskRule noise_rule_from_cpu_state(const at::Tensor& rng_state) {
  check_rng_state(rng_state);
  const int64_t* state = rng_state.const_data_ptr<int64_t>();
  return make_noise_rule(static_cast<uint64_t>(state[0]), static_cast<uint64_t>(state[1]));
}

// Elements `first`, `first` + 1, ... of a contiguous tensor.
inline const void* elements_from(const at::Tensor& tensor, int64_t first) {
  return static_cast<const char*>(tensor.const_data_ptr()) + first * tensor.element_size();
}
inline void* mutable_elements_from(const at::Tensor& tensor, int64_t first) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + first * tensor.element_size();
}

// Calls run(noise_run, first_element) for stretches of `count` elements, on all threads.
template <class F>
void parallel_noise(const MaskRule& rule, int64_t count, F run) {
  at::parallel_for(0, group_count(count), kGrainBlocks, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kGroupColumns;
    const int64_t last = std::min(count, end * kGroupColumns);
    run(NoiseRun{rule, static_cast<uint64_t>(begin), last - first}, first);
  });
}

}  // namespace fused_dropout
