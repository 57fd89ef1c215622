// IMPL(CPU) of bias_act_dropout_add: checks, cutting the work, parallel_for.
//
// The bias gradient is summed in two stages. The elements are cut into slices whose number depends
// on the shape alone; each slice has sums of its own, which are then added slice by slice. So the
// result does not depend on the number of threads.
#include "bias_act_dropout_add.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "../ops/bias_act_dropout_add.h"
#include "../ops/row_major.h"
#include "dispatch.h"
#include "fresh_output.h"
#include "parallel.h"
#include "scratch.h"

namespace fused_dropout::bias_act_dropout_add {
namespace {

constexpr int64_t kGrainGroups = 256;  // a task's 32768 elements take about 50 us
constexpr int64_t kSliceRows = 64;     // sums of a slice are 1/64 of its elements, or fewer
constexpr int64_t kSlices = 64;        // at least, of a tensor with fewer rows

// Rows shorter than a block are joined into rows of at least 128 elements, `joined` at a time.
struct Columns {
  int64_t features;  // of the joined rows
  int64_t joined;
};

Columns columns_of(const Tensor& tensor) {
  const int64_t features = tensor.dim() > 0 ? std::max<int64_t>(1, tensor.size(-1)) : 1;
  const int64_t joined = ceil_div(kGroupColumns, features);
  return {features * joined, joined};
}

// The bias of joined rows, contiguous.
std::optional<Tensor> bias_of_rows(const std::optional<Tensor>& bias, const Columns& columns) {
  if (!bias.has_value() || columns.joined == 1) return row_major(bias);
  const Tensor row = row_major(*bias);
  Tensor rows = empty({columns.features}, dtype_of(row), row);
  const size_t bytes = static_cast<size_t>(row.numel()) * row.element_size();
  char* to = mutable_data_of<char>(rows);
  for (int64_t k = 0; k < columns.joined; ++k, to += bytes) {
    std::memcpy(to, row.const_data_ptr(), bytes);
  }
  return rows;
}

const char* advanced(const char* base, int64_t bytes) {
  return base == nullptr ? nullptr : base + bytes;
}

Settings settings_of(const Tensor& rng_state, double p, double scale, Activation activation,
                     const Columns& columns) {
  return {rule_from_cpu_state(rng_state, p, kStreamMask, kDefaultDigits), scale, activation,
          columns.features};
}

Tensor forward(const Tensor& input, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& residual, const Tensor& rng_state, double p,
               std::string_view activation, double scale) {
  const Activation kind = activation_of(activation);
  check_forward(input, bias, residual, p);
  const Tensor in = row_major(input);
  const Tensor out = fresh_output(in);
  const int64_t count = in.numel();
  const Columns columns = columns_of(in);
  const std::optional<Tensor> row_bias = bias_of_rows(bias, columns);
  const std::optional<Tensor> addend = row_major(residual);
  const Settings settings = settings_of(rng_state, p, scale, kind, columns);
  const auto kernel = kernels<Kernels>().forward[kernel_index(in)];
  const int64_t bytes = static_cast<int64_t>(in.element_size());
  parallel_for(0, group_count(count), kGrainGroups, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kGroupColumns;
    const ForwardRun run = {data_of<char>(in) + first * bytes, data_or_null<void>(row_bias),
                            advanced(data_or_null<char>(addend), first * bytes),
                            mutable_data_of<char>(out) + first * bytes,
                            std::min(count, end * kGroupColumns) - first};
    kernel(settings, run, begin);
  });
  return laid_out_like(input, out);
}

// What the gradients are computed from, dense, and where d_input goes.
struct Backward {
  Tensor grad;
  std::optional<Tensor> in;    // not without an activation
  std::optional<Tensor> bias;  // of joined rows; not without an activation
  Tensor d_input;
  Columns columns;
  Settings settings;

  void run(int64_t first_group, int64_t last_group, void* sums) const {
    const int64_t first = first_group * kGroupColumns;
    const int64_t skipped = first * static_cast<int64_t>(grad.element_size());
    const BackwardRun all = {data_of<char>(grad) + skipped,
                             advanced(data_or_null<char>(in), skipped),
                             data_or_null<void>(bias),
                             mutable_data_of<char>(d_input) + skipped,
                             sums,
                             std::min(grad.numel(), last_group * kGroupColumns) - first};
    kernels<Kernels>().backward[kernel_index(grad)](settings, all, first_group);
  }
};

Backward make_backward(const Tensor& grad_output, const std::optional<Tensor>& input,
                       const std::optional<Tensor>& bias, const Tensor& rng_state, double p,
                       std::string_view activation, double scale) {
  const Activation kind = activation_of(activation);
  check_backward(grad_output, input, bias, p, kind);
  const Tensor grad = row_major(grad_output);
  const Columns columns = columns_of(grad);
  const bool is_plain = kind == Activation::kNone;
  return {grad,
          is_plain ? std::nullopt : row_major(input),
          is_plain ? std::nullopt : bias_of_rows(bias, columns),
          fresh_output(grad),
          columns,
          settings_of(rng_state, p, scale, kind, columns)};
}

Tensor d_input(const Tensor& grad_output, const std::optional<Tensor>& input,
               const std::optional<Tensor>& bias, const Tensor& rng_state, double p,
               std::string_view activation, double scale) {
  const Backward work = make_backward(grad_output, input, bias, rng_state, p, activation, scale);
  parallel_for(0, group_count(work.grad.numel()), kGrainGroups,
               [&](int64_t begin, int64_t end) { work.run(begin, end, nullptr); });
  return laid_out_like(grad_output, work.d_input);
}

// How the elements are cut for the bias gradient.
struct Slices {
  int64_t total;     // elements
  int64_t features;  // of joined rows
  int64_t groups;    // of each slice
  int64_t width;     // sums of each slice

  Slices(int64_t total, int64_t features) : total(total), features(features) {
    const int64_t rows = std::min(kSliceRows * features, ceil_div(total, kSlices));
    groups = group_count(std::max(kGrainGroups * kGroupColumns, rows));
    width = std::min(features, groups * kGroupColumns);
  }
  int64_t count() const { return ceil_div(total, groups * kGroupColumns); }
  int64_t first_column(int64_t slice) const { return slice * groups * kGroupColumns % features; }
};

// out[c] = the sum over all slices for the columns in [begin, end), slice by slice. Sum k of a
// slice belongs to column first_column + k, after the last of which comes column 0.
template <class R>
void add_slices(const Slices& slices, const R* sums, int64_t begin, int64_t end, R* out) {
  std::fill(out + begin, out + end, R(0));
  const auto add = [&](const R* from, int64_t column, int64_t count) {
    const int64_t first = std::max(begin, column);
    const int64_t last = std::min(end, column + count);
    for (int64_t c = first; c < last; ++c) out[c] += from[c - column];
  };
  for (int64_t slice = 0; slice < slices.count(); ++slice, sums += slices.width) {
    const int64_t column = slices.first_column(slice);
    const int64_t in_row = std::min(slices.width, slices.features - column);
    add(sums, column, in_row);
    add(sums + in_row, 0, slices.width - in_row);
  }
}

template <class R>
void run_slices(const Backward& work, const Slices& slices, R* column_sums) {
  const Scratch<R> scratch(static_cast<size_t>(slices.count() * slices.width));
  R* const sums = scratch.get();
  const int64_t groups = group_count(slices.total);
  parallel_for(0, slices.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      R* const own = sums + slice * slices.width;
      std::fill(own, own + slices.width, R(0));
      const int64_t first = slice * slices.groups;
      work.run(first, std::min(groups, first + slices.groups), own);
    }
  });
  const int64_t grain = std::max<int64_t>(1, kGrainGroups * kGroupColumns / slices.count());
  parallel_for(0, slices.features, grain, [&](int64_t begin, int64_t end) {
    add_slices(slices, sums, begin, end, column_sums);
  });
}

std::tuple<Tensor, Tensor> d_both(const Tensor& grad_output, const std::optional<Tensor>& input,
                                  const std::optional<Tensor>& bias, const Tensor& rng_state,
                                  double p, std::string_view activation, double scale) {
  check_has_features(grad_output);
  const Backward work = make_backward(grad_output, input, bias, rng_state, p, activation, scale);
  const int64_t features = grad_output.size(-1);
  const Dtype dtype = dtype_of(grad_output);
  if (grad_output.numel() == 0) {
    return {new_like(grad_output), full({features}, 0, dtype, grad_output)};
  }
  const Slices slices(grad_output.numel(), work.columns.features);
  Tensor sums = empty({work.columns.joined, features}, sum_dtype(grad_output), grad_output);
  if (dtype == dtypes().float64) {
    run_slices(work, slices, mutable_data_of<double>(sums));
  } else {
    run_slices(work, slices, mutable_data_of<float>(sums));
  }
  // The sum is over fewer elements than torch shares among threads.
  const Tensor d_bias = empty({features}, dtype, grad_output);
  copy(torch::stable::sum(sums, Sizes{0}), d_bias);
  return {laid_out_like(grad_output, work.d_input), d_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fused_dropout, m) { define(m, kSchemas); }

STABLE_TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("bias_act_dropout_add", TORCH_BOX(&forward));
  m.impl("bias_act_dropout_add_d_input", TORCH_BOX(&d_input));
  m.impl("bias_act_dropout_add_d_both", TORCH_BOX(&d_both));
}

}  // namespace fused_dropout::bias_act_dropout_add
