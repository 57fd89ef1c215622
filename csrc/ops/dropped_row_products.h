// Products of rows that are dropped just before they are multiplied, by torch's own product: what
// the operators of dropout_linear.h do on either backend.
//
// Rows are dropped a block at a time into a buffer, where the product finds them in cache. So no
// call has memory of the input's size, but where the input has no more than a block:
//
//   output    a block: kBlockElements of the input or one row, whatever is more; another one where
//             the product has another dtype
//   d_weight  the same, and where there are several blocks, one product of the weight's size; in 16
//             bits two such tensors of floats as well
//   d_input   nothing: the product is dropped where it lies
//
// and copies of a weight and a gradient that are not in row-major order. Blocks begin where the
// shapes say, so the sums that they are cut into do not change with the number of threads.
//
// Floor: the product, and the bytes of the input, once for each pass. A block costs twice its bytes
// more within the cache.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "dropout_linear.h"
#include "matrices.h"

namespace fused_dropout::dropout_linear {

// Some rows of a tensor [.., columns], which are a stretch of one of its dimensions.
struct RowBlock {
  Range rows;      // of the flattened tensor
  int64_t offset;  // of the first element in memory, in elements
  size_t dim;      // the stretch is of this dimension, all further ones are whole
  int64_t length;  // of the stretch
};

// Calls f(block) for blocks of at most `most_rows` rows, in their order.
template <class F>
void for_each_block(Sizes sizes, Sizes strides, int64_t most_rows, const F& f, size_t dim = 0,
                    int64_t first_row = 0, int64_t offset = 0) {
  int64_t inner = 1;  // rows of one index
  for (size_t d = dim + 1; d + 1 < sizes.size(); ++d) inner *= sizes[d];
  if (inner > most_rows) {
    for (int64_t k = 0; k < sizes[dim]; ++k) {
      for_each_block(sizes, strides, most_rows, f, dim + 1, first_row + k * inner,
                     offset + k * strides[dim]);
    }
    return;
  }
  for_each_stretch(sizes[dim], most_rows / inner, [&](Range part) {
    f(RowBlock{{first_row + part.begin * inner, first_row + part.end * inner},
               offset + part.begin * strides[dim],
               dim,
               part.size()});
  });
}

// A tensor [.., columns] as a matrix in row-major order, which may be of a copy: a product's last
// bits depend on how its operands lie.
class Rows {
 public:
  explicit Rows(const Tensor& tensor) : tensor_(row_major(tensor)) {
    const size_t last = tensor.sizes().size() - 1;
    const int64_t cols = tensor.sizes()[last];
    int64_t rows = 1;
    for (size_t d = 0; d < last; ++d) rows *= tensor.sizes()[d];
    matrix_ = {tensor_.const_data_ptr(), kernel_type(tensor), 1, rows, cols, 0, cols, 1};
  }

  const Matrices& all() const { return matrix_; }
  Matrices operator[](Range rows) const {
    return matrix_.part(matrix_.all(), rows, matrix_.all_cols());
  }

 private:
  Tensor tensor_;
  Matrices matrix_;
};

// A Backend has
//   kBlockElements                          of a block, about
//   drop(type, in, out, count, first_group) `count` elements, of which the first is a group's first
//   add(part, sums)                         sums += part: contiguous tensors of one dtype
template <class Backend>
class DroppedRowProducts {
 public:
  DroppedRowProducts(const Backend& backend, Device device) : backend_(backend), device_(device) {}

  Tensor output(const Tensor& input, const Tensor& weight,
                const std::optional<Tensor>& bias) const {
    const Tensor out = new_rows(input, weight.size(0), dtype_of(weight));
    if (out.numel() == 0) return out;
    const Rows results(out);
    const Rows weights(weight);
    // On their memory, without their graphs: parameters require gradients, and these products
    // record none.
    const Tensor plain_weight = tensor_of(weights.all(), device_);
    std::optional<Tensor> plain_bias;
    if (bias.has_value()) {
      plain_bias = on_memory(bias->const_data_ptr(), bias->sizes(), bias->strides(),
                             dtype_of(*bias), device_);
    }
    if (input.numel() == 0) {  // no input features
      const Tensor none = empty({results.all().rows, 0}, dtype_of(weight), device_);
      linear_into(tensor_of(results.all(), device_), none, plain_weight, plain_bias);
      return out;
    }
    for_each_dropped_block(input, kernel_type(weight), [&](Range rows, const Matrices& dropped) {
      linear_into(tensor_of(results[rows], device_), tensor_of(dropped, device_), plain_weight,
                  plain_bias);
    });
    return out;
  }

  Tensor d_input(const Tensor& grad_output, const Tensor& weight) const {
    const Tensor result = new_rows(grad_output, weight.size(1), dtype_of(weight));
    if (result.numel() == 0) return result;
    multiply(Rows(grad_output).all(), Rows(weight).all(), Rows(result).all(), device_);
    backend_.drop(kernel_type(result), result.const_data_ptr(), result.mutable_data_ptr(),
                  result.numel(), 0);
    return result;
  }

  // Products of blocks are added as floats (doubles), in their order.
  Tensor d_weight(const Tensor& grad_output, const Tensor& input) const {
    const int64_t outs = grad_output.size(grad_output.dim() - 1);
    const int64_t ins = input.size(input.dim() - 1);
    const Dtype dtype = dtype_of(grad_output);
    const Dtype wide = sum_dtype(grad_output);
    const Tensor result = empty({outs, ins}, dtype, device_);
    if (grad_output.numel() == 0 || input.numel() == 0) return torch::stable::fill_(result, 0);
    const Rows grads(grad_output);
    std::optional<Tensor> sums, product, wide_product;
    const auto hold = [&](std::optional<Tensor>& tensor, Dtype of) {
      if (!tensor.has_value()) tensor = empty({outs, ins}, of, device_);
      return *tensor;
    };
    for_each_dropped_block(input, kernel_type(result), [&](Range rows, const Matrices& dropped) {
      const bool is_first = rows.begin == 0;
      const bool is_only = is_first && rows.end == grads.all().rows;
      if (is_first && (is_only || dtype == wide)) sums = result;
      const Tensor to = is_first && sums.has_value() ? result : hold(product, dtype);
      multiply(grads[rows].transposed(), dropped, Rows(to).all(), device_);
      if (is_first) {
        if (!sums.has_value()) copy(to, hold(sums, wide));
        return;
      }
      if (dtype != wide) copy(to, hold(wide_product, wide));
      backend_.add(dtype == wide ? to : *wide_product, *sums);
    });
    if (!is_same(*sums, result)) copy(*sums, result);
    return result;
  }

 private:
  // [.., cols] with the other sizes of `like`.
  Tensor new_rows(const Tensor& like, int64_t cols, Dtype dtype) const {
    std::vector<int64_t> sizes(like.sizes().begin(), like.sizes().end());
    sizes.back() = cols;
    return empty(sizes, dtype, device_);
  }

  void convert(const Matrices& from, const Matrices& to) const {
    copy(tensor_of(from, device_), tensor_of(to, device_));
  }

  // Multiples of a group's elements where a block has so many rows: each block begins with a group.
  static int64_t rows_of_a_block(int64_t cols) {
    const int64_t rows = std::max<int64_t>(1, Backend::kBlockElements / cols);
    return rows < kGroupColumns ? rows : rows - rows % kGroupColumns;
  }

  // Calls f(rows, dropped) for the blocks of a tensor with elements: these rows are `dropped`, a
  // matrix of `type`.
  template <class F>
  void for_each_dropped_block(const Tensor& input, ScalarType type, const F& f) const {
    const int64_t cols = input.size(input.dim() - 1);
    const int64_t rows = input.numel() / cols;
    const int64_t most_rows = std::min(rows, rows_of_a_block(cols));
    // Groups begin at multiples of 128 elements, rows anywhere: a block is in the buffer behind the
    // elements that precede it in its first group, which are dropped as well and used by nobody.
    const Tensor buffer = empty({most_rows * cols + kGroupColumns - 1}, dtype_of(input), device_);
    std::optional<Tensor> converted;
    if (kernel_type(input) != type) {
      converted = empty({most_rows, cols}, dtype_of(type), device_);
    }
    const auto use = [&](Range block, const void* from) {
      const int64_t before = block.begin * cols % kGroupColumns;
      const int64_t first_group = block.begin * cols / kGroupColumns;
      backend_.drop(kernel_type(input), from, buffer.mutable_data_ptr(),
                    before + block.size() * cols, first_group);
      const Matrices dropped = {
          element(buffer, before), kernel_type(input), 1, block.size(), cols, 0, cols, 1};
      if (!converted.has_value()) return f(block, dropped);
      const Rows all(*converted);
      convert(dropped, all[{0, block.size()}]);
      f(block, all[{0, block.size()}]);
    };
    if (input.is_contiguous()) {
      for_each_stretch(rows, most_rows, [&](Range block) {
        const int64_t first = block.begin * cols;
        use(block, element(input, first - first % kGroupColumns));
      });
      return;
    }
    for_each_block(input.sizes(), input.strides(), most_rows, [&](const RowBlock& block) {
      gather(input, block, element(buffer, block.rows.begin * cols % kGroupColumns));
      use(block.rows, buffer.const_data_ptr());
    });
  }

  // Copies a block to contiguous memory.
  void gather(const Tensor& input, const RowBlock& block, const void* to) const {
    std::vector<int64_t> sizes(input.sizes().begin() + static_cast<int64_t>(block.dim),
                               input.sizes().end());
    sizes[0] = block.length;
    std::vector<int64_t> dense(sizes.size(), 1);
    for (size_t d = sizes.size() - 1; d-- > 0;) dense[d] = dense[d + 1] * sizes[d + 1];
    const Sizes strides(input.strides().data() + block.dim, sizes.size());
    copy(on_memory(element(input, block.offset), sizes, strides, dtype_of(input), device_),
         on_memory(to, sizes, dense, dtype_of(input), device_));
  }

  static const void* element(const Tensor& tensor, int64_t k) {
    const auto bytes = static_cast<int64_t>(tensor.element_size());
    return static_cast<const char*>(tensor.const_data_ptr()) + k * bytes;
  }

  const Backend& backend_;
  Device device_;
};

}  // namespace fused_dropout::dropout_linear
