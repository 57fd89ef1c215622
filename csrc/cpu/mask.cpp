// IMPL(CPU) of the mask operators.
#include "mask.h"

#include "../ops/mask.h"
#include "dispatch.h"
#include "parallel.h"

namespace fused_dropout::mask {
namespace {

constexpr int64_t kGroupsPerTask = 512;  // about 10 us of drawing at p = 0.5

Tensor draw(const Tensor& rng_state, int64_t rows, int64_t cols, double p, int64_t stream,
            int64_t digits) {
  check_arguments(rows, cols, p, stream, digits);
  const MaskRule rule = rule_from_cpu_state(rng_state, p, stream, digits);
  Tensor mask = empty({rows, cols}, dtypes().boolean, rng_state);
  if (mask.numel() == 0) return mask;
  const Kernels& table = kernels<Kernels>();
  uint8_t* out = mutable_data_of<uint8_t>(mask);
  // A long row alone is cut into stretches of whole groups, which are rows of their own to the
  // kernel.
  const int64_t groups = group_count(cols);
  if (groups >= kGroupsPerTask) {
    for (int64_t row = 0; row < rows; ++row) {
      parallel_for(0, groups, kGroupsPerTask, [&](int64_t begin, int64_t end) {
        const int64_t last = std::min(cols, end * kGroupColumns);
        table.draw_bytes(rule, static_cast<uint64_t>(row * groups + begin), 1,
                         last - begin * kGroupColumns, out + row * cols + begin * kGroupColumns);
      });
    }
  } else {
    parallel_for(0, rows, ceil_div(kGroupsPerTask, groups), [&](int64_t begin, int64_t end) {
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

Tensor draw_packed(const Tensor& rng_state, int64_t rows, int64_t cols, double p, int64_t stream,
                   int64_t digits) {
  check_arguments(rows, cols, p, stream, digits);
  const MaskRule rule = rule_from_cpu_state(rng_state, p, stream, digits);
  const int64_t groups = group_count(cols);
  Tensor bits = empty({rows, groups * kGroupWords}, dtypes().int32, rng_state);
  if (bits.numel() > 0) {
    const Kernels& table = kernels<Kernels>();
    uint32_t* out = mutable_data_of<uint32_t>(bits);
    parallel_for(0, rows * groups, kGroupsPerTask, [&](int64_t begin, int64_t end) {
      table.draw_groups(rule, static_cast<uint64_t>(begin), 1, end - begin,
                        out + begin * kGroupWords);
    });
    for (int64_t row = 0; row < rows; ++row) {
      clear_tail(out + ((row + 1) * groups - 1) * kGroupWords, cols - (groups - 1) * kGroupColumns);
    }
  }
  return row_major(torch::stable::narrow(bits, 1, 0, ceil_div(cols, 32)));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("mask", TORCH_BOX(&draw));
  m.impl("packed_mask", TORCH_BOX(&draw_packed));
}

}  // namespace fused_dropout::mask
