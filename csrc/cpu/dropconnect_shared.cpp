// Where `rows_per_mask` rows share a mask M, their products are those of a dense layer:
//
//   output   = input (scale M weight)^T + scale m bias
//   d_input  = grad (scale M weight)
//   d_weight = the sum over masks of scale M (grad^T input)
//
// Masked weights are made in one pass, by the kernels of mask_weight, and multiplied by torch's
// matrix product while they are in cache. Large matrices go in tiles; small ones several masks at a
// time, as a batch. Memory: at most five buffers of kLargeTileElements elements, 4 MiB of floats
// each, whatever the shapes. (torch copies an operand whose strides its product cannot take.)
//
// A dropped product must add 0 where an operand is infinite or NaN, and 0 * NaN is NaN. So an input
// or grad_output that is not finite is left to the kernels, which skip dropped products; d_weight
// is masked after the product.
//
// Types: float and double are multiplied as they are. fp16 is widened first, and so is bf16 but
// where the processor multiplies it in tiles (AMX): elsewhere torch's own product of the two takes
// as long as that of floats, and six times as long on AVX2.
//
// Sums within a product run in the library's order, which may depend on the number of threads.
#include "dropconnect_shared.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <utility>

#include "../ops/checks.h"
#include "dispatch.h"
#include "mask_weight.h"
#include "matrices.h"
#include "parallel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fused_dropout::dropconnect {
namespace {

// A tile of weights stays in a core's level-2 cache; where many rows are multiplied with it, a
// large one is better for the library. No buffer holds more than a large one.
constexpr int64_t kTileElements = 1 << 18;
constexpr int64_t kLargeTileElements = 1 << 20;
constexpr int64_t kManyRows = 128;
constexpr int64_t kLongestSum = 8192;  // terms that one product adds up
static_assert(kLongestSum * kGroupColumns <= kLargeTileElements);
constexpr int64_t kGrainElements = 1 << 15;

bool has_amx_bf16() {
#if defined(__x86_64__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) != 0 && (d & kAmxTile) != 0;
#else
  return false;
#endif
}

// Whether torch multiplies bf16 in tiles. oneDNN, which does it, may have been told not to.
bool multiplies_bfloats() {
  static const bool always = has_amx_bf16() && std::getenv("ONEDNN_MAX_CPU_ISA") == nullptr &&
                             std::getenv("DNNL_MAX_CPU_ISA") == nullptr &&
                             std::getenv("ATEN_CPU_CAPABILITY") == nullptr;
  return always && current_isa() == Isa::kAvx512;
}

// From how many rows to a mask on a product takes less time than the kernels of this instruction
// set: the fewer, the slower they are. Both ways were measured in one process on Sapphire Rapids,
// layers of 64 to 1024 features; bench/mask_weight.py shows what comes of it. torch multiplies bf16
// in tiles so much faster than the kernels do that fewer rows pay.
int64_t fewest_rows(ScalarType type) {
  switch (current_isa()) {
    case Isa::kAvx512:
      return type == ScalarType::kBFloat16 && multiplies_bfloats() ? 16 : 24;
    case Isa::kAvx2:
      return 8;
    case Isa::kPlain:
      return 2;
  }
  return 2;
}

bool is_finite(const MatrixView& matrix, ScalarType type, int64_t rows, int64_t cols) {
  // Runs of neighbours where there are any, and repeated ones once.
  int64_t runs = matrix.row_stride == 0 ? 1 : rows;
  int64_t length = matrix.col_stride == 0 ? 1 : cols;
  int64_t run_stride = matrix.row_stride;
  int64_t stride = matrix.col_stride;
  if (stride != 1 && run_stride == 1) {
    std::swap(runs, length);
    std::swap(run_stride, stride);
  }
  const auto all_finite = kernels<mask_weight::Kernels>().all_finite[static_cast<int>(type)];
  const char* const data = static_cast<const char*>(matrix.data);
  std::atomic<bool> found{true};
  const int64_t grain = std::max<int64_t>(1, kGrainElements / length);
  parallel_for(0, runs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end && found.load(std::memory_order_relaxed); ++k) {
      if (!all_finite(data + k * run_stride * bytes_of(type), stride, length)) found = false;
    }
  });
  return found;
}

// Runs one of the kernels of mask_weight on masks x outs x cols; cols.begin is the first of a
// group. `in` and `out` start at the first of these elements.
using MaskKernel = std::remove_extent_t<decltype(mask_weight::Kernels::apply)>;
void run_masks(MaskKernel kernel, const DropConnectProblem& problem, const Matrices& in,
               Range masks, Range outs, Range cols, const Matrices& out) {
  const Range groups = {cols.begin / kGroupColumns, group_count(cols.end)};
  const int64_t tiles = ceil_div(outs.size(), mask_weight::kTileOuts);
  const int64_t tile_elements = mask_weight::kTileOuts * cols.size();
  const int64_t grain = std::max<int64_t>(1, kGrainElements / tile_elements);
  parallel_for(0, tiles * masks.size(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t mask = k / tiles;
      const int64_t first = k % tiles * mask_weight::kTileOuts;
      const Range part = {first, std::min(first + mask_weight::kTileOuts, outs.size())};
      const Matrices from = in.part({mask, mask + 1}, part, {0, 0});
      const Matrices to = out.part({mask, mask + 1}, part, {0, 0});
      kernel(problem, {from.data, from.row_stride, from.col_stride},
             {masks.begin + mask, {outs.begin + part.begin, outs.begin + part.end}, groups},
             const_cast<void*>(to.data), to.row_stride);
    }
  });
}

class Products {
 public:
  // `sum_length`: how many terms the sums have that are cut into parts.
  Products(const DropConnectProblem& problem, ScalarType type, int64_t sum_length)
      : problem_(problem),
        rows_per_mask_(std::min(problem.rows_per_mask, problem.rows)),
        tile_(rows_per_mask_ < kManyRows ? kTileElements : kLargeTileElements),
        type_(type),
        product_type_(type == ScalarType::kFloat16 ||
                              (type == ScalarType::kBFloat16 &&
                               !(multiplies_bfloats() && sum_length <= kLongestSum))
                          ? ScalarType::kFloat32
                          : type),
        weights_(product_type_),
        rows_(product_type_),
        more_rows_(product_type_),
        result_(product_type_),
        part_(product_type_) {}

  // How many masks go at a time.
  int64_t masks_at_once() const {
    const int64_t outs = problem_.out_features;
    const int64_t ins = problem_.in_features;
    return std::max<int64_t>(
        1, std::min(tile_ / (outs * ins), rows_at_once(1, std::max(outs, ins)) / rows_per_mask_));
  }

  // How many rows of so many matrices fit into a buffer.
  static int64_t rows_at_once(int64_t count, int64_t cols) {
    return std::max<int64_t>(1, kLargeTileElements / (count * cols));
  }

  // result = rows (masked weight)^T where kForward, else rows (masked weight); before it is
  // rounded, each part is given to finish(masks, columns, part). A tile of weights stays in cache
  // for all masks.
  template <bool kForward, class Finish>
  void multiply_weights(const MatrixView& weight, const MatrixView& rows, void* result,
                        Finish finish) {
    const int64_t outs = problem_.out_features;
    const int64_t ins = problem_.in_features;
    const int64_t terms = kForward ? ins : outs;
    const int64_t cols = kForward ? outs : ins;
    const int64_t at_once = masks_at_once();
    const int64_t longest = std::min(terms, kLongestSum);
    // Tiles begin with a group.
    const int64_t fitting = tile_ / (at_once * longest) / kGroupColumns * kGroupColumns;
    const int64_t width = std::min(cols, std::max<int64_t>(kGroupColumns, fitting));
    const bool in_parts = longest < terms;
    const bool direct = !in_parts && !widens();
    for_each_stretch(cols, width, [&](Range c) {
      for_each_chunk(problem_, at_once, [&](const RowChunk& chunk) {
        const int64_t count = chunk.masks.size();
        const Matrices in = chunk.of(rows, type_, terms);
        const Matrices out = chunk.of({result, cols, 1}, type_, cols);
        const int64_t height = direct ? chunk.rows : rows_at_once(count, std::max(longest, width));
        Matrices weights{};
        for_each_stretch(chunk.rows, height, [&](Range r) {
          const Matrices part = out.part(out.all(), r, c);
          const Matrices sum = direct ? part : result_.hold(count, r.size(), c.size());
          for_each_stretch(terms, longest, [&](Range t) {
            if (in_parts || r.begin == 0) {
              weights = kForward ? masked(weight, chunk.masks, c, t).transposed()
                                 : masked(weight, chunk.masks, t, c);
            }
            add_product(ready(in.part(in.all(), r, t), rows_), weights, t.begin == 0, sum);
          });
          finish(chunk.masks, c, sum);
          if (!direct) convert(sum, part);
        });
      });
    });
  }

  // d_weight, whose masks' products are added in their order.
  void multiply_gradients(const MatrixView& grad_output, const MatrixView& input, void* d_weight) {
    const int64_t outs = problem_.out_features;
    const int64_t ins = problem_.in_features;
    const Matrices result = {d_weight, type_, 1, outs, ins, 0, ins, 1};
    const auto& table = kernels<mask_weight::Kernels>();
    const bool one_mask = problem_.rows <= problem_.rows_per_mask;
    if (one_mask && !widens()) {
      const RowChunk all = {{0, 1}, problem_.rows, 0};
      multiply(all.of(grad_output, type_, outs).transposed(), all.of(input, type_, ins), result);
      run_masks(table.apply[static_cast<int>(type_)], problem_, result, {0, 1}, result.all_rows(),
                result.all_cols(), result);
      return;
    }
    // Sums are kept in float or double: in the result itself where it has that type.
    const bool direct = type_ == ScalarType::kFloat32 || type_ == ScalarType::kFloat64;
    Buffer sums(ScalarType::kFloat32);
    const auto put = table.apply_wide[static_cast<int>(product_type_)];
    const auto add = table.add[static_cast<int>(product_type_)];
    const int64_t at_once = masks_at_once();
    const int64_t width = std::min(ins, kLongestSum);
    const int64_t height = std::min(outs, tile_ / width);
    for_each_stretch(outs, height, [&](Range o) {
      for_each_stretch(ins, width, [&](Range i) {
        const Matrices out = result.part({0, 1}, o, i);
        const Matrices sum = direct ? out : sums.hold(1, o.size(), i.size());
        for_each_chunk(problem_, at_once, [&](const RowChunk& chunk) {
          const Matrices product = gradient_product(chunk, grad_output, input, o, i);
          for (int64_t k = 0; k < chunk.masks.size(); ++k) {
            const int64_t mask = chunk.masks.begin + k;
            run_masks(mask == 0 ? put : add, problem_, product.part({k, k + 1}, {0, 0}, {0, 0}),
                      {mask, mask + 1}, o, i, sum);
          }
        });
        if (!direct) convert(sum, out);
      });
    });
  }

 private:
  bool widens() const { return product_type_ != type_; }

  // The masked weights of a tile, [masks, outs, cols].
  Matrices masked(const MatrixView& weight, Range masks, Range outs, Range cols) {
    const Matrices out = weights_.hold(masks.size(), outs.size(), cols.size());
    const Matrices in = {weight.data,          type_, masks.size(),      problem_.out_features,
                         problem_.in_features, 0,     weight.row_stride, weight.col_stride};
    const auto& table = kernels<mask_weight::Kernels>();
    const auto& kernel = widens() ? table.apply_wide : table.apply;
    run_masks(kernel[static_cast<int>(type_)], problem_, in.part({0, masks.size()}, outs, cols),
              masks, outs, cols, out);
    return out;
  }

  // The rows as they are multiplied.
  Matrices ready(const Matrices& rows, Buffer& buffer) {
    if (!widens()) return rows;
    const Matrices wide = buffer.hold(rows.count, rows.rows, rows.cols);
    convert(rows, wide);
    return wide;
  }

  // sum = a b, or sum += a b; where it is added to, `sum` is contiguous.
  void add_product(const Matrices& a, const Matrices& b, bool is_first, const Matrices& sum) {
    if (is_first) return multiply(a, b, sum);
    const Matrices part = part_.hold(sum.count, sum.rows, sum.cols);
    multiply(a, b, part);
    const int64_t count = sum.count * sum.rows * sum.cols;
    const auto add_row = kernels<mask_weight::Kernels>().add_row[static_cast<int>(product_type_)];
    parallel_for(0, count, kGrainElements, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * bytes_of(product_type_);
      add_row(static_cast<const char*>(part.data) + first, end - begin,
              static_cast<char*>(const_cast<void*>(sum.data)) + first);
    });
  }

  // grad^T input of some masks' rows, for output features `outs` and columns `cols`.
  Matrices gradient_product(const RowChunk& chunk, const MatrixView& grad_output,
                            const MatrixView& input, Range outs, Range cols) {
    const int64_t count = chunk.masks.size();
    const Matrices grad = chunk.of(grad_output, type_, problem_.out_features);
    const Matrices rows = chunk.of(input, type_, problem_.in_features);
    const Matrices product = result_.hold(count, outs.size(), cols.size());
    const int64_t height =
        widens() ? rows_at_once(count, std::max(outs.size(), cols.size())) : chunk.rows;
    for_each_stretch(chunk.rows, height, [&](Range r) {
      add_product(ready(grad.part(grad.all(), r, outs), more_rows_).transposed(),
                  ready(rows.part(rows.all(), r, cols), rows_), r.begin == 0, product);
    });
    return product;
  }

  const DropConnectProblem& problem_;
  int64_t rows_per_mask_;
  int64_t tile_;             // elements of a tile of weights
  ScalarType type_;          // of the operands
  ScalarType product_type_;  // of what is multiplied
  Buffer weights_, rows_, more_rows_, result_, part_;
};

// The bias of every mask, added to the rows that share it.
class MaskedBias {
 public:
  MaskedBias(const ForwardArgs& args, ScalarType type)
      : args_(args), wide_(sum_type(type)), row_(sum_type(type)) {
    if (args.bias == nullptr) return;
    const int64_t outs = args.problem.out_features;
    bias_ = wide_.hold(1, 1, outs);
    convert({args.bias, type, 1, 1, outs, 0, 0, args.bias_stride}, bias_);
  }

  // `sums` are the products of some masks' rows for the output features `outs`.
  void add(Range masks, Range outs, const Matrices& sums) {
    if (args_.bias == nullptr) return;
    const auto add_row = kernels<mask_weight::Kernels>().add_row[static_cast<int>(sums.type)];
    const int64_t grain = std::max<int64_t>(1, kGrainElements / outs.size());
    for (int64_t k = 0; k < masks.size(); ++k) {
      const Matrices row = row_.hold(1, 1, outs.size());
      if (row.type == ScalarType::kFloat64) {
        keep(masks.begin + k, outs, static_cast<double*>(const_cast<void*>(row.data)));
      } else {
        keep(masks.begin + k, outs, static_cast<float*>(const_cast<void*>(row.data)));
      }
      parallel_for(0, sums.rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const Matrices out = sums.part({k, k + 1}, {r, r + 1}, {0, outs.size()});
          add_row(row.data, outs.size(), const_cast<void*>(out.data));
        }
      });
    }
  }

 private:
  static ScalarType sum_type(ScalarType type) {
    return type == ScalarType::kFloat64 ? type : ScalarType::kFloat32;
  }

  template <class R>
  void keep(int64_t mask, Range outs, R* row) const {
    const uint32_t* const bits =
        args_.bias_bits + mask * group_count(args_.problem.out_features) * kGroupWords;
    const R* const bias = static_cast<const R*>(bias_.data);
    const R scale = static_cast<R>(args_.problem.scale);
    for (int64_t o = outs.begin; o < outs.end; ++o) {
      row[o - outs.begin] = bits[o / 32] >> (o % 32) & 1 ? scale * bias[o] : R(0);
    }
  }

  const ForwardArgs& args_;
  Buffer wide_, row_;
  Matrices bias_{};
};

// Multiply-adds below which calling torch costs more than it brings.
constexpr int64_t kLeastWork = 1 << 15;

bool pays(const DropConnectProblem& problem, ScalarType type) {
  return std::min(problem.rows_per_mask, problem.rows) >= fewest_rows(type) &&
         problem.rows * problem.in_features * problem.out_features >= kLeastWork;
}

}  // namespace

bool forward_by_products(const ForwardArgs& args, ScalarType type) {
  const DropConnectProblem& problem = args.problem;
  if (!pays(problem, type) || !is_finite(args.input, type, problem.rows, problem.in_features)) {
    return false;
  }
  Products products(problem, type, problem.in_features);
  MaskedBias bias(args, type);
  products.multiply_weights<true>(
      args.weight, args.input, args.output,
      [&](Range masks, Range cols, const Matrices& sums) { bias.add(masks, cols, sums); });
  return true;
}

BackwardArgs backward_by_products(const BackwardArgs& args, ScalarType type) {
  const DropConnectProblem& problem = args.problem;
  BackwardArgs left = args;
  if (!pays(problem, type)) return left;
  if (args.d_weight != nullptr) {
    Products(problem, type, 0).multiply_gradients(args.grad_output, args.input, args.d_weight);
    left.d_weight = nullptr;
  }
  if (args.d_input != nullptr &&
      is_finite(args.grad_output, type, problem.rows, problem.out_features)) {
    Products products(problem, type, problem.out_features);
    products.multiply_weights<false>(args.weight, args.grad_output, args.d_input,
                                     [](Range, Range, const Matrices&) {});
    left.d_input = nullptr;
  }
  return left;
}

}  // namespace fused_dropout::dropconnect
