// Entries of the zoneout kernels, one for each size of elements in bits.
#include "../../csrc/cuda/zoneout.cuh"
#include "device_memory.h"
#include "entries.h"

namespace fused_dropout::zoneout {
namespace {

// The tensors of either pass: two are read and one is written, or one is read and two are written.
template <class U>
Selection<U> forward_of(const U* input, const U* previous, U* out, int64_t count) {
  return {input, previous, out, count};
}
template <class U>
Split<U> backward_of(const U* grad, U* d_input, U* d_previous, int64_t count) {
  return {grad, d_input, d_previous, count};
}

MaskRule rule_of(double p) { return make_mask_rule(0, 0, kStreamMask, p, kDefaultDigits); }

MaskedDims dims_of(const MaskedDim* dims, int count) {
  return make_masked_dims(on_host(dims, count).data(), count);
}

// As the operators launch them.

template <class U>
int forward(const int64_t* rng_state, double p, const U* input, const U* previous, U* out,
            int64_t count) {
  return launch_linear<U>(rule_of(p), rng_from_state(rng_state),
                          forward_of(input, previous, out, count), nullptr);
}

template <class U>
int backward(const int64_t* rng_state, double p, const U* grad, U* d_input, U* d_previous,
             int64_t count) {
  return launch_linear<U>(rule_of(p), rng_from_state(rng_state),
                          backward_of(grad, d_input, d_previous, count), nullptr);
}

template <class U>
int masked_forward(const uint32_t* bits, const MaskedDim* dims, int dim_count, const U* input,
                   const U* previous, U* out, int64_t count) {
  return launch_masked<U>(bits, dims_of(dims, dim_count), forward_of(input, previous, out, count),
                          nullptr);
}

template <class U>
int masked_backward(const uint32_t* bits, const MaskedDim* dims, int dim_count, const U* grad,
                    U* d_input, U* d_previous, int64_t count) {
  return launch_masked<U>(bits, dims_of(dims, dim_count),
                          backward_of(grad, d_input, d_previous, count), nullptr);
}

// As they are launched for large tensors: many groups a warp, and several rounds of `blocks`
// blocks.

template <class U, class Run>
int linear_as(uint64_t seed, uint64_t offset, double p, const Run& run, int warp_groups,
              int by_digits, int vectors, int blocks) {
  const auto launch = by_digits ? launch_linear_as<U, true, Run> : launch_linear_as<U, false, Run>;
  return launch(rule_of(p), {nullptr, seed, offset}, run, warp_groups, vectors != 0,
                dim3(static_cast<unsigned>(blocks)), nullptr);
}

template <class U>
int forward_as(uint64_t seed, uint64_t offset, double p, const U* input, const U* previous, U* out,
               int64_t count, int warp_groups, int by_digits, int vectors, int blocks) {
  return linear_as<U>(seed, offset, p, forward_of(input, previous, out, count), warp_groups,
                      by_digits, vectors, blocks);
}

template <class U>
int backward_as(uint64_t seed, uint64_t offset, double p, const U* grad, U* d_input, U* d_previous,
                int64_t count, int warp_groups, int by_digits, int vectors, int blocks) {
  return linear_as<U>(seed, offset, p, backward_of(grad, d_input, d_previous, count), warp_groups,
                      by_digits, vectors, blocks);
}

template <class U>
int masked_forward_as(const uint32_t* bits, const MaskedDim* dims, int dim_count, const U* input,
                      const U* previous, U* out, int64_t count, int warp_groups, int vectors,
                      int blocks) {
  return launch_masked_as<U>(bits, dims_of(dims, dim_count),
                             forward_of(input, previous, out, count), warp_groups, vectors != 0,
                             dim3(static_cast<unsigned>(blocks)), nullptr);
}

template <class U>
struct Entries {
  explicit Entries(const std::string& bits)
      : forward_entry("zoneout_forward_" + bits, forward<U>),
        backward_entry("zoneout_backward_" + bits, backward<U>),
        masked_forward_entry("zoneout_masked_forward_" + bits, masked_forward<U>),
        masked_backward_entry("zoneout_masked_backward_" + bits, masked_backward<U>),
        forward_as_entry("zoneout_forward_as_" + bits, forward_as<U>),
        backward_as_entry("zoneout_backward_as_" + bits, backward_as<U>),
        masked_forward_as_entry("zoneout_masked_forward_as_" + bits, masked_forward_as<U>) {}

  worker::Registration forward_entry, backward_entry, masked_forward_entry, masked_backward_entry,
      forward_as_entry, backward_as_entry, masked_forward_as_entry;
};

const Entries<uint16_t> entries_of_16("16");
const Entries<uint32_t> entries_of_32("32");
const Entries<uint64_t> entries_of_64("64");

}  // namespace
}  // namespace fused_dropout::zoneout
