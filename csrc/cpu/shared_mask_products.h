// Matrix products of rows that share masks with masked weights, by torch's own product. Included by
// dropconnect_shared.cpp, which says what is computed.
//
// Masked weights are made a tile at a time. Two things let a product of few rows take no longer
// than its share of one large product: the tile is in the core's level-2 cache, and lies so that
// the library need not pack it, as [terms of a sum, columns of the result] with rows that do not
// meet in the same sets of the caches. So forward makes masked weights transposed. Where several
// masks follow one another on a tile, its weights are copied first, in that order and in the type
// of the product.
//
// Memory: each thread has at most one buffer of kLargeTileElements, for that copy, and four of
// kTileElements; or, where the threads share each product, all of them have five buffers of
// kLargeTileElements, 4 MiB of floats each. Space between the rows of one of them adds a sixteenth.
// (torch copies an operand whose strides its product cannot take.)
//
// Time: floor is the product of as many rows at once, as one core multiplies it. Making a masked
// weight moves 8 bytes within level-2 cache, some 2.5 ns for 16 floats on Sapphire Rapids, and 1 ns
// more to draw and transpose their bits: of a product of 128 rows, a tenth.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <type_traits>

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

// A small tile of weights stays in a core's level-2 cache, beside the weights that it is made of
// and the rows that it is multiplied with. Where these are many, or the product is fast, a large
// one is better for the library.
constexpr int64_t kTileElements = 1 << 17;
constexpr int64_t kLargeTileElements = 1 << 20;
// Terms that one product adds up, in small tiles and at most.
constexpr int64_t kTileTerms = 1024;
constexpr int64_t kLongestSum = 8192;
static_assert(kTileTerms * kGroupColumns <= kTileElements);
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

// From how many rows to a mask on large tiles of weights are better; measured as `fewest_rows` is.
int64_t many_rows(bool bfloats) { return current_isa() == Isa::kAvx512 && !bfloats ? 256 : 128; }

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

// The transposed of the same: masks x cols x outs from `in`, transposed as well.
void run_transposed_masks(const DropConnectProblem& problem, const Matrices& in, Range masks,
                          Range outs, Range cols, const Matrices& out) {
  const auto kernel = kernels<mask_weight::Kernels>().apply_transposed[static_cast<int>(out.type)];
  constexpr int64_t kPieceCols = 8 * kGroupColumns;
  const int64_t across = ceil_div(outs.size(), kGroupColumns);
  const int64_t pieces = across * ceil_div(cols.size(), kPieceCols);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (kGroupColumns * kPieceCols));
  parallel_for(0, pieces * masks.size(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t mask = k / pieces;
      const int64_t o = k % pieces % across * kGroupColumns;
      const int64_t i = k % pieces / across * kPieceCols;
      const Range o_part = {o, std::min(o + kGroupColumns, outs.size())};
      const Range i_part = {i, std::min(i + kPieceCols, cols.size())};
      const Matrices from = in.part({0, 1}, i_part, o_part);
      const Matrices to = out.part({mask, mask + 1}, i_part, o_part);
      const Range groups = {(cols.begin + i_part.begin) / kGroupColumns,
                            group_count(cols.begin + i_part.end)};
      kernel(problem, from.data, from.row_stride,
             {masks.begin + mask, {outs.begin + o_part.begin, outs.begin + o_part.end}, groups},
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
        type_(type),
        product_type_(type == ScalarType::kFloat16 ||
                              (type == ScalarType::kBFloat16 &&
                               !(multiplies_bfloats() && sum_length <= kLongestSum))
                          ? ScalarType::kFloat32
                          : type) {}

  // result = rows (masked weight)^T where kForward, else rows (masked weight); before it is
  // rounded, each part is given to finish(masks, columns, part). A tile of weights stays in cache
  // for all masks.
  template <bool kForward, class Finish>
  void multiply_weights(const MatrixView& weight, const MatrixView& rows, void* result,
                        Finish finish) const {
    const int64_t terms = kForward ? problem_.in_features : problem_.out_features;
    const int64_t cols = kForward ? problem_.out_features : problem_.in_features;
    for_each_task(
        [&](const Cut& cut) {
          return ceil_div(cols, width(cut, terms)) * Chunks(problem_, masks_at_once(cut)).count();
        },
        [&](const Cut& cut, Workspace& space, int64_t task) {
          const Chunks chunks(problem_, masks_at_once(cut));
          const int64_t first = task / chunks.count() * width(cut, terms);
          const Range c = {first, std::min(first + width(cut, terms), cols)};
          const RowChunk chunk = chunks[task % chunks.count()];
          // bf16 is packed for its tiles anyway, fastest from rows as they are.
          const bool reuses = chunks.count() > 1 && terms <= kLongestSum &&
                              !(kForward && product_type_ == ScalarType::kBFloat16);
          multiply_tile<kForward>(cut, space, reuses, weight, chunk.of(rows, type_, terms),
                                  chunk.masks, c, chunk.of({result, cols, 1}, type_, cols), finish);
        });
  }

  // d_weight, whose masks' products are added in their order.
  void multiply_gradients(const MatrixView& grad_output, const MatrixView& input,
                          void* d_weight) const {
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
    const auto width_of = [&](const Cut& cut) { return std::min(ins, cut.longest); };
    const auto height_of = [&](const Cut& cut) {
      return std::min(outs, cut.elements / width_of(cut));
    };
    for_each_task(
        [&](const Cut& cut) {
          return ceil_div(outs, height_of(cut)) * ceil_div(ins, width_of(cut));
        },
        [&](const Cut& cut, Workspace& space, int64_t task) {
          const int64_t across = ceil_div(ins, width_of(cut));
          const int64_t o = task / across * height_of(cut);
          const int64_t i = task % across * width_of(cut);
          sum_products(cut, space, grad_output, input, {o, std::min(o + height_of(cut), outs)},
                       {i, std::min(i + width_of(cut), ins)}, result);
        });
  }

 private:
  // How the work is cut: the most elements of a tile of weights or of any other buffer, but for
  // tiles that must have the width of a group; and the most terms that one product adds up.
  struct Cut {
    int64_t elements;
    int64_t longest;
  };

  // The memory of one task at a time.
  struct Workspace {
    explicit Workspace(ScalarType type)
        : weights(type),
          plain_weights(type),
          rows(type),
          more_rows(type),
          result(type),
          part(type),
          sums(ScalarType::kFloat32) {}
    Buffer weights, plain_weights, rows, more_rows, result, part, sums;
    Range plain_cols = {0, 0};  // of the result, whose weights `plain` has
    Matrices plain{};
  };

  bool widens() const { return product_type_ != type_; }

  static int64_t whole_vectors(int64_t elements) {
    return ceil_div(elements, mask_weight::kMostLanes) * mask_weight::kMostLanes;
  }

  // How many masks go at a time.
  int64_t masks_at_once(const Cut& cut) const {
    const int64_t outs = whole_vectors(problem_.out_features);
    const int64_t ins = whole_vectors(problem_.in_features);
    const int64_t fitting = rows_at_once(cut, 1, std::max(outs, ins)) / rows_per_mask_;
    return std::max<int64_t>(1, std::min(cut.elements / (outs * ins), fitting));
  }

  // How many rows of so many matrices fit into a buffer.
  static int64_t rows_at_once(const Cut& cut, int64_t count, int64_t cols) {
    return std::max<int64_t>(1, cut.elements / (count * cols));
  }

  // Columns of a tile of weights whose sums have so many terms; tiles begin with a group.
  int64_t width(const Cut& cut, int64_t terms) const {
    const int64_t length = masks_at_once(cut) * std::min(terms, cut.longest);
    return std::max<int64_t>(1, cut.elements / length / kGroupColumns) * kGroupColumns;
  }

  // Calls f(cut, workspace, task) for all tasks, of which a cut makes count(cut). Small tiles are
  // for the threads to take each its own, where that keeps all of them busy; on large ones they
  // work together, within torch's product.
  template <class Count, class F>
  void for_each_task(Count count, F f) const {
    const bool bfloats = product_type_ == ScalarType::kBFloat16;
    const Cut small =
        bfloats ? Cut{2 * kTileElements, kLongestSum} : Cut{kTileElements, kTileTerms};
    const Cut large = {kLargeTileElements, kLongestSum};
    const bool apart = rows_per_mask_ < many_rows(bfloats) && keeps_threads_busy(count(small));
    const Cut cut = apart ? small : large;
    const int64_t tasks = count(cut);
    parallel_for(0, tasks, apart ? 1 : tasks, [&](int64_t begin, int64_t end) {
      Workspace space(product_type_);
      for (int64_t task = begin; task < end; ++task) f(cut, space, task);
    });
  }

  static bool keeps_threads_busy(int64_t tasks) {
    const int64_t threads = thread_count();
    return tasks >= 0.8 * static_cast<double>(ceil_div(tasks, threads) * threads);
  }

  // Columns `c` of `out` = rows `in` (masked weight)^T where kForward, else `in` (masked weight).
  // `reuses`: other masks of the same tile follow.
  template <bool kForward, class Finish>
  void multiply_tile(const Cut& cut, Workspace& space, bool reuses, const MatrixView& weight,
                     const Matrices& in, Range masks, Range c, const Matrices& out,
                     Finish finish) const {
    const int64_t longest = std::min(in.cols, cut.longest);
    const bool in_parts = longest < in.cols;
    const bool direct = !in_parts && !widens();
    const int64_t height =
        direct ? in.rows : rows_at_once(cut, in.count, std::max(longest, c.size()));
    Matrices weights{};
    for_each_stretch(in.rows, height, [&](Range r) {
      const Matrices part = out.part(out.all(), r, c);
      const Matrices sum = direct ? part : space.result.hold(in.count, r.size(), c.size());
      for_each_stretch(in.cols, longest, [&](Range t) {
        if (in_parts || r.begin == 0) {
          weights = reuses     ? masked_again<kForward>(space, weight, masks, c, t, in.cols)
                    : kForward ? masked(space, weight, masks, c, t).transposed()
                               : masked(space, weight, masks, t, c);
        }
        add_product(space, ready(in.part(in.all(), r, t), space.rows), weights, t.begin == 0, sum);
      });
      finish(masks, c, sum);
      if (!direct) convert(sum, part);
    });
  }

  // Output features `o` and columns `i` of d_weight.
  void sum_products(const Cut& cut, Workspace& space, const MatrixView& grad_output,
                    const MatrixView& input, Range o, Range i, const Matrices& result) const {
    // Sums are kept in float or double: in the result itself where it has that type.
    const bool direct = type_ == ScalarType::kFloat32 || type_ == ScalarType::kFloat64;
    const auto& table = kernels<mask_weight::Kernels>();
    const auto put = table.apply_wide[static_cast<int>(product_type_)];
    const auto add = table.add[static_cast<int>(product_type_)];
    const Matrices out = result.part({0, 1}, o, i);
    const Matrices sum = direct ? out : space.sums.hold(1, o.size(), i.size());
    const Chunks chunks(problem_, masks_at_once(cut));
    for (int64_t c = 0; c < chunks.count(); ++c) {
      const RowChunk chunk = chunks[c];
      const Matrices product =
          gradient_product(cut, space, chunk.of(grad_output, type_, result.rows),
                           chunk.of(input, type_, result.cols), o, i);
      for (int64_t k = 0; k < chunk.masks.size(); ++k) {
        const int64_t mask = chunk.masks.begin + k;
        run_masks(mask == 0 ? put : add, problem_, product.part({k, k + 1}, {0, 0}, {0, 0}),
                  {mask, mask + 1}, o, i, sum);
      }
    }
    if (!direct) convert(sum, out);
  }

  // The masked weights of a tile, [masks, outs, cols].
  Matrices masked(Workspace& space, const MatrixView& weight, Range masks, Range outs,
                  Range cols) const {
    const Matrices out =
        space.weights.hold(masks.size(), outs.size(), cols.size(), stride_apart(cols.size()));
    const Matrices in = {weight.data,          type_, masks.size(),      problem_.out_features,
                         problem_.in_features, 0,     weight.row_stride, weight.col_stride};
    const auto& table = kernels<mask_weight::Kernels>();
    const auto& kernel = widens() ? table.apply_wide : table.apply;
    run_masks(kernel[static_cast<int>(type_)], problem_, in.part({0, masks.size()}, outs, cols),
              masks, outs, cols, out);
    return out;
  }

  // The masked weights of a tile of which other masks are wanted too: terms `t` of `terms`, and
  // columns `c` of the result. They lie as their product takes the least time, [terms, columns].
  template <bool kForward>
  Matrices masked_again(Workspace& space, const MatrixView& weight, Range masks, Range c, Range t,
                        int64_t terms) const {
    const int64_t stride = whole_vectors(c.size());
    if (space.plain_cols.begin != c.begin || space.plain_cols.end != c.end) {
      // Copied once: rows of the weight lie in the same sets of the caches, and may be of any
      // strides and of a narrower type.
      space.plain = space.plain_weights.hold(1, terms, c.size(), stride);
      space.plain_cols = c;
      Matrices in = {weight.data,
                     type_,
                     1,
                     problem_.out_features,
                     problem_.in_features,
                     0,
                     weight.row_stride,
                     weight.col_stride};
      if (kForward) in = in.transposed();
      convert(in.part({0, 1}, {0, terms}, c), space.plain);
    }
    Matrices plain = space.plain.part({0, 1}, t, {0, c.size()});
    plain.stride = 0;
    const Matrices out = space.weights.hold(masks.size(), t.size(), c.size(), stride_apart(stride));
    if (kForward) {
      run_transposed_masks(problem_, plain, masks, c, t, out);
    } else {
      const auto kernel = kernels<mask_weight::Kernels>().apply[static_cast<int>(product_type_)];
      run_masks(kernel, problem_, plain, masks, t, c, out);
    }
    return out;
  }

  // A distance of rows that is no multiple of 1 KiB: columns of such rows meet in few sets of the
  // caches, and a product may take a quarter longer.
  int64_t stride_apart(int64_t cols) const {
    constexpr int64_t kCacheLine = 64;
    const int64_t bytes = bytes_of(product_type_);
    return cols * bytes % 1024 == 0 ? cols + kCacheLine / bytes : cols;
  }

  // The rows as they are multiplied.
  Matrices ready(const Matrices& rows, Buffer& buffer) const {
    if (!widens()) return rows;
    const Matrices wide = buffer.hold(rows.count, rows.rows, rows.cols);
    convert(rows, wide);
    return wide;
  }

  // sum = a b, or sum += a b; where it is added to, `sum` is contiguous.
  void add_product(Workspace& space, const Matrices& a, const Matrices& b, bool is_first,
                   const Matrices& sum) const {
    if (is_first) return multiply(a, b, sum);
    const Matrices part = space.part.hold(sum.count, sum.rows, sum.cols);
    multiply(a, b, part);
    const int64_t count = sum.count * sum.rows * sum.cols;
    const auto add_row = kernels<mask_weight::Kernels>().add_row[static_cast<int>(product_type_)];
    parallel_for(0, count, kGrainElements, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * bytes_of(product_type_);
      add_row(static_cast<const char*>(part.data) + first, end - begin,
              static_cast<char*>(const_cast<void*>(sum.data)) + first);
    });
  }

  // grad^T rows of some masks, for output features `outs` and columns `cols`.
  Matrices gradient_product(const Cut& cut, Workspace& space, const Matrices& grad,
                            const Matrices& rows, Range outs, Range cols) const {
    const int64_t count = grad.count;
    const Matrices product = space.result.hold(count, outs.size(), cols.size());
    const int64_t height =
        widens() ? rows_at_once(cut, count, std::max(outs.size(), cols.size())) : rows.rows;
    for_each_stretch(rows.rows, height, [&](Range r) {
      add_product(space, ready(grad.part(grad.all(), r, outs), space.more_rows).transposed(),
                  ready(rows.part(rows.all(), r, cols), space.rows), r.begin == 0, product);
    });
    return product;
  }

  const DropConnectProblem& problem_;
  int64_t rows_per_mask_;
  ScalarType type_;          // of the operands
  ScalarType product_type_;  // of what is multiplied
};

}  // namespace
}  // namespace fused_dropout::dropconnect
