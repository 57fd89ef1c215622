// Entries of the project's kernels: the launch functions of csrc/cuda with plain parameters.
#include "../../csrc/cuda/mask.cuh"
#include "entries.h"

namespace fused_dropout {
namespace {

MaskRule rule_of(int stream, double p, int digits) {
  return make_mask_rule(0, 0, static_cast<uint32_t>(stream), p, digits);
}

int draw_groups(const int64_t* rng_state, int stream, double p, int digits, uint64_t first,
                uint64_t stride, int64_t count, uint32_t* out, int64_t max_blocks) {
  return launch_draw_groups(rule_of(stream, p, digits), rng_from_state(rng_state), first, stride,
                            count, out, nullptr, max_blocks);
}

int draw_packed(const int64_t* rng_state, int stream, double p, int digits, uint64_t first,
                int64_t rows, int64_t cols, uint32_t* out, int64_t max_blocks) {
  return launch_draw_packed(rule_of(stream, p, digits), rng_from_state(rng_state), first, rows,
                            cols, out, nullptr, max_blocks);
}

int draw_bytes(const int64_t* rng_state, int stream, double p, int digits, uint64_t first,
               int64_t rows, int64_t cols, uint8_t* out, int64_t max_blocks) {
  return launch_draw_bytes(rule_of(stream, p, digits), rng_from_state(rng_state), first, rows, cols,
                           out, nullptr, max_blocks);
}

// One group with the seed and the offset by value.
int draw_by_value(uint64_t seed, uint64_t offset, double p, uint32_t* out) {
  return launch_draw_groups(rule_of(0, p, kDefaultDigits), {nullptr, seed, offset}, 0, 1, 1, out,
                            nullptr);
}

// Groups first .. first + count - 1 of one block, as a large mask has them drawn: kManyPerLane by a
// lane at a time.
int draw_many_groups(const int64_t* rng_state, double p, int digits, uint64_t first, int64_t count,
                     uint32_t* out) {
  return launch_kernel<draw_groups_kernel<kManyPerLane>>(
      dim3(1), dim3(kMaskThreads), 0, nullptr, rule_of(0, p, digits), rng_from_state(rng_state),
      first, uint64_t{1}, count, out);
}

__global__ void place_kernel(int64_t group, int64_t cols, Divisor row_groups, int64_t* out) {
  const GroupPlace place = place_of_group(group, cols, row_groups);
  out[0] = place.row;
  out[1] = place.first_col;
  out[2] = place.columns;
}

// Where the kernels put a group of a matrix that may be too large for any memory.
int place(int64_t group, int64_t cols, int64_t* out) {
  return launch_kernel<place_kernel>(1, 1, 0, nullptr, group, cols, make_divisor(group_count(cols)),
                                     out);
}

CUDA_ON_CPU_ENTRY(draw_groups);
CUDA_ON_CPU_ENTRY(draw_packed);
CUDA_ON_CPU_ENTRY(draw_bytes);
CUDA_ON_CPU_ENTRY(draw_by_value);
CUDA_ON_CPU_ENTRY(draw_many_groups);
CUDA_ON_CPU_ENTRY(place);

}  // namespace
}  // namespace fused_dropout
