// Work on all threads of torch's pool.
#pragma once

#include "../torch_abi.h"

namespace fused_dropout {

// Calls f(begin, end) for stretches of begin .. end, of at least `grain` where there are several.
// One stretch does not pay for the call into torch.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (end - begin > grain) return torch::stable::parallel_for(begin, end, grain, f);
  if (end > begin) f(begin, end);
}

inline int64_t thread_count() { return torch::stable::get_num_threads(); }

}  // namespace fused_dropout
