// Entries canary_<name>(planted, blocks, in, out, n).
#include "canaries.cuh"

#include "entries.h"

namespace fused_dropout {
namespace {

constexpr size_t kTileBytes = kCanaryThreads * sizeof(float);

template <auto kPlanted, auto kClean>
int launch_canary(bool planted, int blocks, const float* in, float* out, int n) {
  const dim3 grid(static_cast<unsigned>(blocks));
  const dim3 block(kCanaryThreads);
  return planted ? launch_kernel<kPlanted>(grid, block, 0, nullptr, in, out, n)
                 : launch_kernel<kClean>(grid, block, 0, nullptr, in, out, n);
}

int short_dynamic_shared(bool planted, int blocks, const float* in, float* out, int n) {
  const size_t bytes = planted ? kTileBytes - sizeof(float) : kTileBytes;
  return launch_kernel<reverse_in_dynamic_shared>(dim3(static_cast<unsigned>(blocks)),
                                                  dim3(kCanaryThreads), bytes, nullptr, in, out, n);
}

#define CANARY(name) \
  const worker::Registration name##_entry("canary_" #name, launch_canary<name<true>, name<false>>)

CANARY(missing_barrier);
CANARY(missing_second_barrier);
CANARY(missing_warp_barrier);
CANARY(read_past_the_end);
CANARY(write_past_the_end);
CANARY(write_past_shared);
CANARY(misaligned_load);
CANARY(misaligned_store);
CANARY(racing_add);
CANARY(missing_fence);
CANARY(missing_copy_wait);
CANARY(missing_barrier_after_copy);
CANARY(stale_stage);
CANARY(stage_filled_too_early);
CANARY(misaligned_copy);
CANARY(divergent_barrier);
CANARY(return_before_barrier);
CANARY(uninitialised_shared);
CANARY(lanes_missing_from_shuffle);
CANARY(shuffle_from_outside_mask);
const worker::Registration short_dynamic_shared_entry("canary_short_dynamic_shared",
                                                      short_dynamic_shared);

}  // namespace
}  // namespace fused_dropout
