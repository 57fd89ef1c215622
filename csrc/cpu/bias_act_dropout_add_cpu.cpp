// IMPL(CPU) of bias_act_dropout_add: checks, cutting the work, at::parallel_for.
//
// The bias gradient is summed in two stages. The elements are cut into slices whose number depends
// on the shape alone; each slice has sums of its own, which are then added slice by slice. So the
// result does not depend on the number of threads.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../bias_act_dropout_add_arguments.h"
#include "dispatch.h"
#include "fresh_output.h"

namespace fused_dropout {
namespace {

using at::Tensor;

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

// The bias of joined rows, contiguous; undefined if there is none.
Tensor bias_of_rows(const std::optional<Tensor>& bias, const Columns& columns) {
  if (!bias.has_value()) return {};
  return columns.joined > 1 ? bias->repeat({columns.joined}) : bias->contiguous();
}

Tensor contiguous_or_undefined(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->contiguous() : Tensor();
}

const char* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? static_cast<const char*>(tensor.const_data_ptr()) : nullptr;
}

const char* advanced(const char* base, int64_t bytes) {
  return base == nullptr ? nullptr : base + bytes;
}

BiasActSettings settings_of(const Tensor& rng_state, double p, double scale, Activation activation,
                            const Columns& columns) {
  return {rule_from_cpu_state(rng_state, p, kStreamMask, kDefaultDigits), scale, activation,
          columns.features};
}

Tensor forward(const Tensor& input, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& residual, const Tensor& rng_state, double p,
               std::string_view activation, double scale) {
  const Activation kind = activation_of(activation);
  check_bias_act_forward(input, bias, residual, p);
  const Tensor in = input.contiguous();
  const Tensor out = fresh_output(in);
  const int64_t count = in.numel();
  const Columns columns = columns_of(in);
  const Tensor row_bias = bias_of_rows(bias, columns);
  const Tensor addend = contiguous_or_undefined(residual);
  const BiasActSettings settings = settings_of(rng_state, p, scale, kind, columns);
  const auto kernel = kernels().bias_act.forward[static_cast<int>(kernel_type(in))];
  const int64_t bytes = in.element_size();
  at::parallel_for(0, group_count(count), kGrainGroups, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kGroupColumns;
    const BiasActForward run = {data_or_null(in) + first * bytes, data_or_null(row_bias),
                                advanced(data_or_null(addend), first * bytes),
                                static_cast<char*>(out.mutable_data_ptr()) + first * bytes,
                                std::min(count, end * kGroupColumns) - first};
    kernel(settings, run, begin);
  });
  return with_strides_like(out, input);
}

// What the gradients are computed from, dense, and where d_input goes.
struct Backward {
  Tensor grad;
  Tensor in;    // undefined without an activation
  Tensor bias;  // of joined rows; may be undefined
  Tensor d_input;
  Columns columns;
  BiasActSettings settings;

  void run(int64_t first_group, int64_t last_group, void* sums) const {
    const int64_t first = first_group * kGroupColumns;
    const int64_t skipped = first * grad.element_size();
    const BiasActBackward all = {data_or_null(grad) + skipped,
                                 advanced(data_or_null(in), skipped),
                                 data_or_null(bias),
                                 static_cast<char*>(d_input.mutable_data_ptr()) + skipped,
                                 sums,
                                 std::min(grad.numel(), last_group * kGroupColumns) - first};
    kernels().bias_act.backward[static_cast<int>(kernel_type(grad))](settings, all, first_group);
  }
};

Backward make_backward(const Tensor& grad_output, const std::optional<Tensor>& input,
                       const std::optional<Tensor>& bias, const Tensor& rng_state, double p,
                       std::string_view activation, double scale) {
  const Activation kind = activation_of(activation);
  check_bias_act_backward(grad_output, input, bias, p, kind);
  const Tensor grad = grad_output.contiguous();
  const Columns columns = columns_of(grad);
  const bool is_plain = kind == Activation::kNone;
  return {grad,
          is_plain ? Tensor() : contiguous_or_undefined(input),
          is_plain ? Tensor() : bias_of_rows(bias, columns),
          fresh_output(grad),
          columns,
          settings_of(rng_state, p, scale, kind, columns)};
}

Tensor d_input(const Tensor& grad_output, const std::optional<Tensor>& input,
               const std::optional<Tensor>& bias, const Tensor& rng_state, double p,
               std::string_view activation, double scale) {
  const Backward work = make_backward(grad_output, input, bias, rng_state, p, activation, scale);
  at::parallel_for(0, group_count(work.grad.numel()), kGrainGroups,
                   [&](int64_t begin, int64_t end) { work.run(begin, end, nullptr); });
  return with_strides_like(work.d_input, grad_output);
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
void run_slices(const Backward& work, const Slices& slices, const Tensor& workspace,
                const Tensor& column_sums) {
  R* const sums = workspace.mutable_data_ptr<R>();
  const int64_t groups = group_count(slices.total);
  at::parallel_for(0, slices.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      R* const own = sums + slice * slices.width;
      std::fill(own, own + slices.width, R(0));
      const int64_t first = slice * slices.groups;
      work.run(first, std::min(groups, first + slices.groups), own);
    }
  });
  const int64_t grain = std::max<int64_t>(1, kGrainGroups * kGroupColumns / slices.count());
  at::parallel_for(0, slices.features, grain, [&](int64_t begin, int64_t end) {
    add_slices(slices, sums, begin, end, column_sums.mutable_data_ptr<R>());
  });
}

std::tuple<Tensor, Tensor> d_both(const Tensor& grad_output, const std::optional<Tensor>& input,
                                  const std::optional<Tensor>& bias, const Tensor& rng_state,
                                  double p, std::string_view activation, double scale) {
  TORCH_CHECK(grad_output.dim() > 0, "grad_output must have shape [..., features]");
  const Backward work = make_backward(grad_output, input, bias, rng_state, p, activation, scale);
  const int64_t features = grad_output.size(-1);
  if (grad_output.numel() == 0) {
    return {at::empty_like(grad_output), at::zeros({features}, grad_output.options())};
  }
  const Slices slices(grad_output.numel(), work.columns.features);
  const bool is_double = grad_output.scalar_type() == at::kDouble;
  const auto options = grad_output.options().dtype(is_double ? at::kDouble : at::kFloat);
  const Tensor workspace = at::empty({slices.count(), slices.width}, options);
  const Tensor column_sums = at::empty({slices.features}, options);
  (is_double ? run_slices<double> : run_slices<float>)(work, slices, workspace, column_sums);
  // The sum is over fewer elements than torch shares among threads.
  const Tensor sums =
      work.columns.joined > 1 ? column_sums.view({-1, features}).sum(0) : column_sums;
  return {with_strides_like(work.d_input, grad_output), sums.to(grad_output.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_dropout, CPU, m) {
  m.impl("bias_act_dropout_add", forward);
  m.impl("bias_act_dropout_add_d_input", d_input);
  m.impl("bias_act_dropout_add_d_both", d_both);
}

}  // namespace fused_dropout
