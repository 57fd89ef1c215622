// IMPL(CPU) of dropout: checks, cutting the work, at::parallel_for.
//
// Where the elements lie in the order of their mask bits, each thread draws the bits of its stretch
// just before it uses them. Everything else (shared dimensions, channels_last, transposed inputs)
// draws the packed mask first and then reads it in the order of memory.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../dropout_layout.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "rng_cpu.h"

namespace fused_dropout {
namespace {

using at::Tensor;

constexpr int64_t kGrainGroups = 256;  // a task's 32768 elements take about 10 us
constexpr int64_t kTileRows = 64;      // rows that transpose_bits makes at a time

// The elements of one call.
struct Work {
  const DropoutKernels& table;
  int type;
  int64_t element_bytes;
  AffineMap map;
  DropoutRun all;

  // Elements first, first + 1, ... in the order of memory.
  DropoutRun run(int64_t first, int64_t count) const {
    const auto at = [&](const void* base) {
      return base == nullptr ? nullptr : static_cast<const char*>(base) + first * element_bytes;
    };
    return {at(all.in), at(all.residual), static_cast<char*>(all.out) + first * element_bytes,
            count};
  }
};

void run_linear(const Work& work, const MaskRule& rule) {
  const auto apply = work.table.draw_and_apply[work.type];
  at::parallel_for(0, group_count(work.all.count), kGrainGroups, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kGroupColumns;
    const int64_t count = std::min(work.all.count, end * kGroupColumns) - first;
    apply(rule, work.map, work.run(first, count), static_cast<uint64_t>(begin));
  });
}

// The whole mask, packed, with the spare bytes that the kernels may read.
Tensor draw_all_bits(const MaskRule& rule, int64_t mask_numel) {
  const int64_t groups = group_count(mask_numel);
  Tensor bits = at::empty({(groups + 1) * kGroupWords}, at::kInt);
  uint32_t* out = static_cast<uint32_t*>(bits.mutable_data_ptr());
  at::parallel_for(0, groups, kGrainGroups, [&](int64_t begin, int64_t end) {
    kernels().mask.draw_groups(rule, static_cast<uint64_t>(begin), 1, end - begin,
                               out + begin * kGroupWords);
  });
  return bits;
}

bool bit_at(const uint32_t* bits, int64_t k) { return bits[k / 32] >> (k % 32) & 1; }

// The first mask bit of stretch `index`, counted over all dimensions but the last `inner`.
int64_t first_bit_of(const DropoutLayout& layout, int64_t index, size_t inner) {
  int64_t bit = 0;
  for (size_t d = layout.dims.size() - inner; d-- > 0;) {
    bit += index % layout.dims[d].size * layout.dims[d].mask_stride;
    index /= layout.dims[d].size;
  }
  return bit;
}

// Stretches whose elements share a bit, or have consecutive ones.
void run_stretches(const Work& work, const DropoutLayout& layout, const uint32_t* bits) {
  const MaskedDim inner = layout.dims.back();
  const int64_t stretches = layout.numel / inner.size;
  const int64_t pieces = ceil_div(inner.size, kGrainGroups * kGroupColumns);
  const int64_t piece = ceil_div(ceil_div(inner.size, pieces), kGroupColumns) * kGroupColumns;
  const int64_t grain = std::max<int64_t>(1, kGrainGroups * kGroupColumns / inner.size);
  at::parallel_for(0, stretches * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t stretch = k / pieces;
      const int64_t first = k % pieces * piece;
      const int64_t count = std::min(piece, inner.size - first);
      if (count <= 0) continue;
      const DropoutRun run = work.run(stretch * inner.size + first, count);
      const int64_t bit = first_bit_of(layout, stretch, 1);
      if (inner.mask_stride == 0) {
        work.table.apply_alike[work.type](work.map, run, bit_at(bits, bit));
      } else {
        work.table.apply[work.type](work.map, run, bits, bit + first);
      }
    }
  });
}

// The last dimension's bits are far apart, those of the one before it consecutive: channels_last,
// or a transposed matrix.
void run_transposed(const Work& work, const DropoutLayout& layout, const uint32_t* bits) {
  const MaskedDim rows = layout.dims[layout.dims.size() - 2];
  const MaskedDim cols = layout.dims.back();
  const int64_t tiles = ceil_div(rows.size, kTileRows);
  const int64_t planes = layout.numel / (rows.size * cols.size);
  const int64_t tile_groups = group_count(kTileRows * cols.size);
  const int64_t grain = std::max<int64_t>(1, kGrainGroups / tile_groups);
  at::parallel_for(0, planes * tiles, grain, [&](int64_t begin, int64_t end) {
    Tensor scratch = at::empty({(tile_groups + 1) * kGroupWords}, at::kInt);
    uint32_t* const tile_bits = static_cast<uint32_t*>(scratch.mutable_data_ptr());
    for (int64_t k = begin; k < end; ++k) {
      const int64_t plane = k / tiles;
      const int64_t row = k % tiles * kTileRows;
      const int64_t count = std::min(kTileRows, rows.size - row);
      work.table.transpose_bits(bits, first_bit_of(layout, plane, 2) + row, cols.mask_stride, count,
                                cols.size, tile_bits);
      const int64_t element = (plane * rows.size + row) * cols.size;
      work.table.apply[work.type](work.map, work.run(element, count * cols.size), tile_bits, 0);
    }
  });
}

// What remains, such as a tensor with three dimensions in reverse: the bits are put in the order of
// memory one by one.
void run_gathered(const Work& work, const DropoutLayout& layout, const uint32_t* bits) {
  const int64_t groups = group_count(layout.numel);
  at::parallel_for(0, groups, kGrainGroups, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      uint32_t words[2 * kGroupWords] = {};
      const int64_t first = g * kGroupColumns;
      const int64_t count = std::min<int64_t>(kGroupColumns, layout.numel - first);
      for (int64_t k = 0; k < count; ++k) {
        const bool kept = bit_at(bits, first_bit_of(layout, first + k, 0));
        words[k / 32] |= static_cast<uint32_t>(kept) << (k % 32);
      }
      work.table.apply[work.type](work.map, work.run(first, count), words, 0);
    }
  });
}

void run_dropout(const Work& work, const DropoutLayout& layout, const MaskRule& rule) {
  if (layout.is_linear()) return run_linear(work, rule);
  const Tensor bits = draw_all_bits(rule, layout.mask_numel);
  const uint32_t* const words = static_cast<const uint32_t*>(bits.const_data_ptr());
  const size_t count = layout.dims.size();
  if (layout.dims.back().mask_stride <= 1) return run_stretches(work, layout, words);
  if (count > 1 && layout.dims[count - 2].mask_stride == 1) {
    return run_transposed(work, layout, words);
  }
  run_gathered(work, layout, words);
}

// `out` has the strides of `input`, which has no gaps.
void dropout_into(const Tensor& out, const Tensor& input, const std::optional<Tensor>& residual,
                  const Tensor& rng_state, double p, at::IntArrayRef shared_dims,
                  const AffineMap& map) {
  if (input.numel() == 0) return;
  const DropoutLayout layout = dropout_layout(input, shared_dims);
  Tensor addend;
  if (residual.has_value()) addend = like_in_memory(*residual, input);
  const Work work{kernels().dropout,
                  static_cast<int>(kernel_type(input)),
                  input.element_size(),
                  map,
                  {input.const_data_ptr(), addend.defined() ? addend.const_data_ptr() : nullptr,
                   out.mutable_data_ptr(), input.numel()}};
  run_dropout(work, layout, rule_from_cpu_state(rng_state, p, kStreamMask, kDefaultDigits));
}

Tensor dropout_cpu(const Tensor& input, const std::optional<Tensor>& residual,
                   const Tensor& rng_state, double p, at::IntArrayRef shared_dims, double scale,
                   double shift, double fill) {
  check_dropout_arguments(input, residual, p);
  const Tensor dense = without_gaps(input);
  Tensor out = dense.is_same(input) ? fresh_output(input) : dense;  // a copy is ours to change
  dropout_into(out, dense, residual, rng_state, p, shared_dims, {scale, shift, fill});
  return out;
}

std::tuple<Tensor, Tensor> drawn_dropout_cpu(const Tensor& input,
                                             const std::optional<Tensor>& residual,
                                             const std::optional<at::Generator>& generator,
                                             double p, at::IntArrayRef shared_dims, double scale,
                                             double shift, double fill) {
  const Tensor rng_state = draw_cpu_state(generator);
  return {dropout_cpu(input, residual, rng_state, p, shared_dims, scale, shift, fill), rng_state};
}

void dropout_cpu_(const Tensor& input, const std::optional<Tensor>& residual,
                  const Tensor& rng_state, double p, at::IntArrayRef shared_dims, double scale,
                  double shift, double fill) {
  check_dropout_arguments(input, residual, p);
  at::assert_no_internal_overlap(input);
  const Tensor dense = without_gaps(input);
  dropout_into(dense, dense, residual, rng_state, p, shared_dims, {scale, shift, fill});
  if (!dense.is_same(input)) input.copy_(dense);
}

Tensor drawn_dropout_cpu_(const Tensor& input, const std::optional<Tensor>& residual,
                          const std::optional<at::Generator>& generator, double p,
                          at::IntArrayRef shared_dims, double scale, double shift, double fill) {
  const Tensor rng_state = draw_cpu_state(generator);
  dropout_cpu_(input, residual, rng_state, p, shared_dims, scale, shift, fill);
  return rng_state;
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("dropout", dropout_cpu);
  m.impl("dropout.generator", drawn_dropout_cpu);
  m.impl("dropout_", dropout_cpu_);
  m.impl("dropout_.generator", drawn_dropout_cpu_);
}

}  // namespace fused_dropout
