// Per-example DropConnect on one core: the products of forward (dropconnect_forward.h) and of both
// gradients (dropconnect_backward.h), and the gradient of the bias.
#pragma once

#include "../dropconnect_backward.h"
#include "../dropconnect_forward.h"

namespace fused_dropout::dropconnect {
namespace {

// Rows whose sums are added up by themselves, which keeps rounding errors small.
constexpr int64_t kBiasRows = 32;

// d_bias[o] = scale * sum_n m[n, o] grad[n, o], for 128 output features.
template <class T>
void bias_grad(const BiasGradArgs& args, int64_t group) {
  using R = Real<T>;
  constexpr int kLanes = Vec<R>::kLanes;
  R sums[kGroupColumns] = {};
  R grad[kBiasRows * kGroupColumns];
  const int64_t groups = group_count(args.out_features);
  const Range outs = {group * kGroupColumns,
                      smaller((group + 1) * kGroupColumns, args.out_features)};
  for (int64_t n = 0; n < args.rows; n += kBiasRows) {
    const Range rows = {n, smaller(n + kBiasRows, args.rows)};
    pack_panel<T>(args.grad_output, rows, outs, rows.size(), kGroupColumns, grad, kGroupColumns);
#pragma GCC unroll 8
    for (int chunk = 0; chunk < kGroupColumns / kLanes; ++chunk) {
      Vec<R> sum = broadcast(R(0));  // of one block: partial sums keep rounding errors small
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        const int64_t mask_group = r / args.rows_per_mask * groups + group;
        const uint8_t* bits =
            reinterpret_cast<const uint8_t*>(args.bias_bits + mask_group * kGroupWords);
        const R* value = grad + (r - n) * kGroupColumns + chunk * kLanes;
        sum = fma_kept(bits, chunk, load(value), broadcast(R(1)), sum);
      }
      store(sums + chunk * kLanes, load(sums + chunk * kLanes) + sum);
    }
  }
  store_panel(sums, kGroupColumns, {0, 1}, outs, static_cast<R>(args.scale),
              static_cast<T*>(args.d_bias), 0);
}

template <template <class> class Scratch, class... Args>
size_t scratch_bytes(ScalarType type, Args... args) {
  ScratchCursor cursor(nullptr);
  if (type == ScalarType::kFloat64) {
    Scratch<double>(cursor, args...);
  } else {
    Scratch<float>(cursor, args...);
  }
  return cursor.used();
}

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {[](ScalarType type) { return scratch_bytes<ForwardScratch>(type); },
          {forward<float>, forward<BFloat16>, forward<Float16>, forward<double>},
          [](ScalarType type, Range outs) { return scratch_bytes<BackwardScratch>(type, outs); },
          {backward<float>, backward<BFloat16>, backward<Float16>, backward<double>},
          {bias_grad<float>, bias_grad<BFloat16>, bias_grad<Float16>, bias_grad<double>}};
}

}  // namespace fused_dropout::dropconnect

FUSED_DROPOUT_INSTANTIATE(fused_dropout::dropconnect::Kernels);
