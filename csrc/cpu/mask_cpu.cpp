// IMPL(CPU) of the mask operators.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../checks.h"
#include "dispatch.h"

namespace fused_dropout {
namespace {

constexpr int64_t kGroupsPerTask = 512;  // about 10 us of drawing at p = 0.5

at::Tensor mask_cpu(const at::Tensor& rng_state, int64_t rows, int64_t cols, double p,
                    int64_t stream, int64_t digits) {
  check_mask_arguments(p, rows, cols, stream, digits);
  const MaskRule rule = rule_from_cpu_state(rng_state, p, stream, digits);
  at::Tensor mask = at::empty({rows, cols}, at::kBool);
  if (mask.numel() == 0) return mask;
  const MaskKernels& table = kernels().mask;
  uint8_t* out = static_cast<uint8_t*>(mask.mutable_data_ptr());
  // A long row alone is cut into stretches of whole groups, which are rows of their own to the
  // kernel.
  const int64_t groups = group_count(cols);
  if (groups >= kGroupsPerTask) {
    for (int64_t row = 0; row < rows; ++row) {
      at::parallel_for(0, groups, kGroupsPerTask, [&](int64_t begin, int64_t end) {
        const int64_t last = std::min(cols, end * kGroupColumns);
        table.draw_bytes(rule, static_cast<uint64_t>(row * groups + begin), 1,
                         last - begin * kGroupColumns, out + row * cols + begin * kGroupColumns);
      });
    }
  } else {
    at::parallel_for(0, rows, ceil_div(kGroupsPerTask, groups), [&](int64_t begin, int64_t end) {
      table.draw_bytes(rule, static_cast<uint64_t>(begin * groups), end - begin, cols,
                       out + begin * cols);
    });
  }
  return mask;
}

// Clears the bits of the last group's columns past the end of the row.
void clear_tail(uint32_t* group, int64_t columns) {
  for (int64_t w = 0; w < kGroupWords; ++w) {
    const int64_t left = columns - 32 * w;
    if (left <= 0) {
      group[w] = 0;
    } else if (left < 32) {
      group[w] &= (1u << left) - 1;
    }
  }
}

at::Tensor packed_mask_cpu(const at::Tensor& rng_state, int64_t rows, int64_t cols, double p,
                           int64_t stream, int64_t digits) {
  check_mask_arguments(p, rows, cols, stream, digits);
  const MaskRule rule = rule_from_cpu_state(rng_state, p, stream, digits);
  const int64_t groups = group_count(cols);
  at::Tensor bits = at::empty({rows, groups * kGroupWords}, at::kInt);
  if (bits.numel() > 0) {
    const MaskKernels& table = kernels().mask;
    uint32_t* out = static_cast<uint32_t*>(bits.mutable_data_ptr());
    at::parallel_for(0, rows * groups, kGroupsPerTask, [&](int64_t begin, int64_t end) {
      table.draw_groups(rule, static_cast<uint64_t>(begin), 1, end - begin,
                        out + begin * kGroupWords);
    });
    for (int64_t row = 0; row < rows; ++row) {
      clear_tail(out + ((row + 1) * groups - 1) * kGroupWords, cols - (groups - 1) * kGroupColumns);
    }
  }
  return bits.narrow(1, 0, ceil_div(cols, 32)).contiguous();
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("mask", mask_cpu);
  m.impl("packed_mask", packed_mask_cpu);
}

}  // namespace fused_dropout
