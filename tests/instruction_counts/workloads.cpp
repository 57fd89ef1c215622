// Runs every main kernel once, on small inputs that never change, inside a call of `measured` each:
// what callgrind counts. It prints a line for each: units of work, and the workload's name.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <vector>

#include "entries.h"

namespace {

enum Type { kFloat32, kBFloat16, kFloat16, kFloat64 };
constexpr int64_t kGelu = 2;

// Numbers around 1 in any type: 1 and a little in some elements.
class Operand {
 public:
  Operand(Type type, int64_t count) : bytes_(static_cast<size_t>(count * size_of(type))) {
    for (int64_t k = 0; k < count; ++k) {
      uint8_t* const at = bytes_.data() + k * size_of(type);
      const uint64_t one[] = {0x3F800000, 0x3F80, 0x3C00, 0x3FF0000000000000};
      const uint64_t bits = one[type] + static_cast<uint64_t>(k * 37 % 64);
      std::copy_n(reinterpret_cast<const uint8_t*>(&bits), size_of(type), at);
    }
  }
  void* data() { return bytes_.data(); }
  static int64_t size_of(Type type) { return type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2; }

 private:
  std::vector<uint8_t> bytes_;
};

}  // namespace

// By its name the tool knows when to count.
extern "C" __attribute__((noinline)) void measured(const std::function<void()>& work) { work(); }

namespace {

void run(const char* name, int64_t units, const std::function<void()>& work) {
  std::printf("%lld %s\n", static_cast<long long>(units), name);
  measured(work);
}

Random random_of(double p) { return {1234567, 89, p}; }

void draw(const char* name, double p, int64_t digits) {
  constexpr int64_t kGroups = 4003;
  std::vector<uint32_t> out(4 * kGroups);
  const Random random = random_of(p);
  run(name, kGroups, [&] { mask_draw_groups(&random, 0, digits, 1000, 3, kGroups, out.data()); });
}

void draw_bytes() {
  constexpr int64_t kCount = 100'000;
  std::vector<uint8_t> out(kCount);
  const Random random = random_of(0.1);
  run("mask bytes, p 0.1", kCount,
      [&] { mask_draw_bytes(&random, 0, 16, 0, 1, kCount, out.data()); });
}

// A layer with several blocks of every kind, and a rest of some.
struct Case {
  const char* name;
  Type type;
  double p;
  bool stored;
  int64_t rows_per_mask;
};

void dropconnect(const Case& c, bool forward) {
  const Layer layer = {100, 1100, 66, c.rows_per_mask, 2.0};
  const int64_t rows = layer.rows, ins = layer.in_features, outs = layer.out_features;
  Operand x(c.type, rows * ins), w(c.type, outs * ins), b(c.type, outs), y(c.type, rows * outs);
  Operand d_x(c.type, rows * ins), d_w(c.type, outs * ins);
  const Matrix input = {x.data(), ins, 1}, weight = {w.data(), ins, 1}, grad = {y.data(), outs, 1};
  const Random random = random_of(c.p);
  std::vector<uint32_t> masks;
  if (c.stored) {
    masks.resize(static_cast<size_t>(dropconnect_mask_words(&layer)));
    dropconnect_mask_bits(&random, &layer, masks.data());
  }
  const uint32_t* const bits = c.stored ? masks.data() : nullptr;
  const int64_t products = rows * ins * outs;
  if (forward) {
    run(c.name, products, [&] {
      dropconnect_forward(c.type, &random, &layer, bits, &input, &weight, b.data(), 1, y.data());
    });
  } else {
    run(c.name, 2 * products, [&] {
      dropconnect_backward(c.type, &random, &layer, bits, &grad, &input, &weight, d_x.data(),
                           d_w.data());
    });
  }
}

void dropconnect_bias() {
  const Layer layer = {300, 1, 515, 1, 2.0};
  Operand y(kFloat32, layer.rows * layer.out_features), d_b(kFloat32, layer.out_features);
  const Matrix grad = {y.data(), layer.out_features, 1};
  const Random random = random_of(0.5);
  run("dropconnect d_bias float32, p 0.5", layer.rows * layer.out_features,
      [&] { dropconnect_bias_grad(kFloat32, &random, &layer, &grad, d_b.data()); });
}

constexpr int64_t kElements = 100'070;

void dropout(const char* name, Type type, double p) {
  Operand in(type, kElements), out(type, kElements);
  const Random random = random_of(p);
  const Affine map = {2, 0, 0};
  run(name, kElements, [&] {
    dropout_draw_and_apply(type, &random, &map, in.data(), nullptr, out.data(), kElements, 0);
  });
}

void dropout_of_runs() {
  Operand in(kBFloat16, kElements), out(kBFloat16, kElements);
  const Affine map = {2, 0, 0};
  run("dropout of a kept run, bfloat16", kElements,
      [&] { dropout_apply_alike(kBFloat16, &map, in.data(), nullptr, out.data(), kElements, 1); });
}

void dropout_of_columns() {
  constexpr int64_t kRows = 500, kCols = 70;
  Operand in(kFloat32, kRows * kCols), out(kFloat32, kRows * kCols);
  std::vector<uint32_t> bits(kRows * kCols / 32 + 8, 0x5A5A5A5A);
  std::vector<int64_t> first_bits(kCols);
  for (int64_t c = 0; c < kCols; ++c) first_bits[static_cast<size_t>(c)] = c * kRows;
  const Affine map = {2, 0, 0};
  run("dropout of columns, float32", kRows * kCols, [&] {
    dropout_apply_columns(kFloat32, &map, in.data(), nullptr, out.data(), kRows, kCols, kCols,
                          first_bits.data(), bits.data());
  });
}

void mask_weight(const char* name, Type type, double p) {
  constexpr int64_t kOuts = 70, kIns = 520;
  Operand in(type, kOuts * kIns), out(type, kOuts * kIns);
  const Matrix weight = {in.data(), kIns, 1};
  const Layer layer = {1, kIns, kOuts, 1, 2};
  const Random random = random_of(p);
  run(name, kOuts * kIns,
      [&] { mask_weight_apply(type, &random, &layer, nullptr, &weight, 0, out.data()); });
}

void transposed_mask_weight(const char* name, Type type, double p) {
  constexpr int64_t kOuts = 128, kIns = 520;
  Operand in(type, kOuts * kIns), out(type, kOuts * kIns);
  const Layer layer = {1, kIns, kOuts, 1, 2};
  const Random random = random_of(p);
  run(name, kOuts * kIns, [&] {
    mask_weight_apply_transposed(type, &random, &layer, nullptr, in.data(), 0, out.data());
  });
}

void dropconnect_moments(const char* name, Type type, int64_t rows) {
  constexpr int64_t kOuts = 66, kIns = 1100, kStride = 1104;
  Operand x(type, rows * kIns), w(type, kOuts * kIns), b(type, kOuts);
  std::vector<float> wide(static_cast<size_t>(rows * kStride)), squares = wide;
  std::vector<float> mean(static_cast<size_t>(rows * kOuts)), variance = mean;
  const Matrix input = {x.data(), kIns, 1}, weight = {w.data(), kIns, 1};
  const Layer layer = {rows, kIns, kOuts, 1, 0.5};
  dropconnect_moments_square(type, &input, rows, kIns, wide.data(), squares.data(), kStride);
  run(name, rows * kIns * kOuts, [&] {
    dropconnect_moments_apply(type, &layer, 1, wide.data(), squares.data(), kStride, &weight,
                              b.data(), mean.data(), variance.data());
  });
}

void zoneout(const char* forward, const char* backward, Type type, double p) {
  constexpr int64_t kElements = 40'010;
  Operand in(type, kElements), previous(type, kElements), out(type, kElements);
  const Random random = random_of(p);
  run(forward, kElements, [&] {
    zoneout_draw_and_select(type, &random, in.data(), previous.data(), out.data(), kElements, 0);
  });
  run(backward, kElements, [&] {
    zoneout_draw_and_split(type, &random, in.data(), previous.data(), out.data(), kElements, 0);
  });
}

void drop_block() {
  constexpr int64_t kMaps = 20, kSide = 56;
  const int64_t size[] = {1, kSide, kSide}, block[] = {1, 7, 7};
  std::vector<uint64_t> out(kMaps * kSide * kSide / 64 + 1);
  const Random random = random_of(0.002);
  run("drop_block mask", kMaps * kSide * kSide,
      [&] { drop_block_mask(&random, kMaps, size, block, out.data()); });
}

void epilogue(const char* forward, const char* backward, Type type) {
  constexpr int64_t kFeatures = 770, kRows = 40, kCount = kFeatures * kRows;
  Operand in(type, kCount), bias(type, kFeatures), residual(type, kCount), out(type, kCount);
  std::vector<double> sums(kFeatures);
  const Random random = random_of(0.1);
  run(forward, kCount, [&] {
    bias_act_dropout_add_forward(type, &random, 2, kGelu, kFeatures, in.data(), bias.data(),
                                 residual.data(), out.data(), kCount, 0);
  });
  run(backward, kCount, [&] {
    bias_act_dropout_add_backward(type, &random, 2, kGelu, kFeatures, residual.data(), in.data(),
                                  bias.data(), out.data(), sums.data(), kCount, 0);
  });
}

void noise() {
  constexpr int64_t kCount = 20'010;
  Operand in(kFloat32, kCount), variance(kFloat32, kCount), out(kFloat32, kCount);
  const Random random = random_of(0.5);
  run("normal noise", kCount, [&] { noise_normals(kFloat32, &random, 0, kCount, out.data()); });
  run("gaussian_noise float32", kCount, [&] {
    gaussian_noise_add(kFloat32, &random, 1e-8, in.data(), variance.data(), out.data(), 0, kCount);
  });
  run("gaussian_dropout float32", kCount,
      [&] { gaussian_dropout_apply(kFloat32, &random, 0.5, in.data(), out.data(), 0, kCount); });
  run("concrete_dropout float32", kCount, [&] {
    concrete_dropout_apply(kFloat32, &random, -1, 0.1, in.data(), out.data(), 0, kCount);
  });
}

}  // namespace

int main() {
  draw("mask bits, 1 digit", 0.5, 16);
  draw("mask bits, 4 digits", 0.1875, 16);
  draw("mask bits, 16 digits", 0.1, 16);
  draw_bytes();
  dropconnect({"dropconnect forward float32, p 0.5", kFloat32, 0.5, false, 1}, true);
  dropconnect({"dropconnect forward float32, p 0.1", kFloat32, 0.1, false, 1}, true);
  dropconnect({"dropconnect forward float32, stored", kFloat32, 0.1, true, 1}, true);
  dropconnect({"dropconnect forward float32, shared", kFloat32, 0.5, false, 25}, true);
  dropconnect({"dropconnect forward bfloat16, p 0.5", kBFloat16, 0.5, false, 1}, true);
  dropconnect({"dropconnect forward float64, p 0.5", kFloat64, 0.5, false, 1}, true);
  dropconnect({"dropconnect backward float32, p 0.5", kFloat32, 0.5, false, 1}, false);
  dropconnect({"dropconnect backward float32, p 0.1", kFloat32, 0.1, false, 1}, false);
  dropconnect({"dropconnect backward float32, stored", kFloat32, 0.1, true, 1}, false);
  dropconnect({"dropconnect backward bfloat16, p 0.5", kBFloat16, 0.5, false, 1}, false);
  dropconnect_bias();
  mask_weight("mask_weight float32, p 0.5", kFloat32, 0.5);
  mask_weight("mask_weight bfloat16, p 0.1", kBFloat16, 0.1);
  transposed_mask_weight("mask_weight transposed float32, p 0.5", kFloat32, 0.5);
  dropconnect_moments("dropconnect_moments float32, 1 row", kFloat32, 1);
  dropconnect_moments("dropconnect_moments float32, 8 rows", kFloat32, 8);
  dropconnect_moments("dropconnect_moments bfloat16, 8 rows", kBFloat16, 8);
  dropout("dropout float32, p 0.5", kFloat32, 0.5);
  dropout("dropout float32, p 0.1", kFloat32, 0.1);
  dropout("dropout bfloat16, p 0.1", kBFloat16, 0.1);
  dropout("dropout float16, p 0.1", kFloat16, 0.1);
  dropout("dropout float64, p 0.1", kFloat64, 0.1);
  dropout_of_runs();
  dropout_of_columns();
  zoneout("zoneout forward float32, p 0.5", "zoneout backward float32, p 0.5", kFloat32, 0.5);
  zoneout("zoneout forward bfloat16, p 0.1", "zoneout backward bfloat16, p 0.1", kBFloat16, 0.1);
  drop_block();
  epilogue("bias_act_dropout_add forward float32", "bias_act_dropout_add backward float32",
           kFloat32);
  epilogue("bias_act_dropout_add forward bfloat16", "bias_act_dropout_add backward bfloat16",
           kBFloat16);
  noise();
}
