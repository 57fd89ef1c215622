// What an instruction set offers to the kernels, said once. An isa_*.cpp file includes its own
// vectors_*.h and then this header, which does not compile where an operation is missing or has
// other types.
//
// Words of a mask lie in memory as packed bits, four to a group of 128 elements. `bits` points to
// the 16 bytes of a group, and `chunk` counts vectors from the group's start.
#pragma once

#include "prelude.h"
#include "scalar_types.h"

namespace fused_dropout {
namespace {

// A value of any type, to ask which type an expression has.
template <class T>
T& some();

#define FUSED_DROPOUT_OFFERS(Type, ...) \
  static_assert(std::is_same_v<decltype(__VA_ARGS__), Type>, #__VA_ARGS__)

// ---- Lanes: 32-bit Philox words of kCount groups, each in the low half of a 64-bit lane. The high
// halves may hold anything.

static_assert(Lanes::kCount >= 2, "the first and last lanes are drawn as a pair");
FUSED_DROPOUT_OFFERS(Lanes, splat(some<uint32_t>()));  // in every lane
FUSED_DROPOUT_OFFERS(
    Lanes, load_lanes(some<const uint64_t*>()));          // all 64 bits, in the order of pack_words
FUSED_DROPOUT_OFFERS(Lanes, high_halves(some<Lanes>()));  // in the low halves
FUSED_DROPOUT_OFFERS(Lanes, add64(some<Lanes>(), some<uint64_t>()));  // to all 64 bits
FUSED_DROPOUT_OFFERS(Lanes, some<Lanes>() | some<Lanes>());
FUSED_DROPOUT_OFFERS(Lanes, some<Lanes>() ^ some<Lanes>());
FUSED_DROPOUT_OFFERS(Lanes, xor3(some<Lanes>(), some<Lanes>(), some<Lanes>()));
// The high and low words of 32 x 32 bits.
FUSED_DROPOUT_OFFERS(Product<Lanes>, multiply(some<Lanes>(), some<uint32_t>()));

// ---- Bits: the 128 bits of each of Lanes::kCount groups, in order.

FUSED_DROPOUT_OFFERS(Bits, bits_of(some<bool>()));  // all alike
FUSED_DROPOUT_OFFERS(Bits, some<Bits>() | some<Bits>());
FUSED_DROPOUT_OFFERS(Bits, some<Bits>() & some<Bits>());
FUSED_DROPOUT_OFFERS(Bits, and_not(some<Bits>(), some<Bits>()));  // of the first, not of the second
FUSED_DROPOUT_OFFERS(Bits, load_bits(some<const uint32_t*>()));
FUSED_DROPOUT_OFFERS(void, store_bits(some<uint32_t*>(), some<Bits>()));
// Of the four words of Philox outputs, back in the order in which load_lanes read their groups.
FUSED_DROPOUT_OFFERS(Bits, pack_words(some<const Lanes[4]>()));

// ---- Vec<float> and Vec<double>: kLanes numbers; kLanes divides 128. Memory need not be aligned.

template <class R>
struct VectorsOf {
  static_assert(kGroupColumns % Vec<R>::kLanes == 0);
  FUSED_DROPOUT_OFFERS(Vec<R>, load(some<const R*>()));
  FUSED_DROPOUT_OFFERS(void, store(some<R*>(), some<Vec<R>>()));
  FUSED_DROPOUT_OFFERS(Vec<R>, broadcast(some<R>()));
  FUSED_DROPOUT_OFFERS(Vec<R>, some<Vec<R>>() + some<Vec<R>>());
  FUSED_DROPOUT_OFFERS(Vec<R>, some<Vec<R>>() * some<Vec<R>>());
  FUSED_DROPOUT_OFFERS(Vec<R>, square_root(some<Vec<R>>()));
  // a * b + c, rounded once or twice.
  FUSED_DROPOUT_OFFERS(Vec<R>, multiply_add(some<Vec<R>>(), some<Vec<R>>(), some<Vec<R>>()));
  // sum + a * b in the lanes whose bit is set; the others keep `sum`, whatever a and b hold.
  FUSED_DROPOUT_OFFERS(Vec<R>, fma_kept(some<const uint8_t*>(), some<int>(), some<Vec<R>>(),
                                        some<Vec<R>>(), some<Vec<R>>()));
  // `a` in the lanes whose bit is set, `b` in the others.
  FUSED_DROPOUT_OFFERS(Vec<R>, select_kept(some<const uint8_t*>(), some<int>(), some<Vec<R>>(),
                                           some<Vec<R>>()));
  // `a` in the lanes whose word, one for each lane, contains the one bit; `b` in the others.
  FUSED_DROPOUT_OFFERS(Vec<R>, select_words(some<const uint32_t*>(), some<uint32_t>(),
                                            some<Vec<R>>(), some<Vec<R>>()));
  // out[k] += the sum of a[k]'s lanes.
  FUSED_DROPOUT_OFFERS(void, add_sums4(some<R*>(), some<const Vec<R>[4]>()));
};
template struct VectorsOf<float>;
template struct VectorsOf<double>;

// Sixteen-bit floats in and out, rounded as float_formats.h does.
FUSED_DROPOUT_OFFERS(Vec<float>, load_half(some<const uint16_t*>()));
FUSED_DROPOUT_OFFERS(void, store_half(some<uint16_t*>(), some<Vec<float>>()));
FUSED_DROPOUT_OFFERS(Vec<float>, load_bfloat(some<const uint16_t*>()));
FUSED_DROPOUT_OFFERS(void, store_bfloat(some<uint16_t*>(), some<Vec<float>>()));
// Two vectors' worth of bfloats, times the factor.
FUSED_DROPOUT_OFFERS(void,
                     scale_bfloats(some<const uint16_t*>(), some<Vec<float>>(), some<uint16_t*>()));

// ---- GroupMask<R>: DropConnect's mask of a row and an output feature over a group of columns,
// which come kLanes at a time, in an order of the instruction set's own.

static_assert(std::is_same_v<decltype(kMasksOperands), const bool>);  // takes finite operands only
static_assert(kMaskBytes >= kGroupBytes);  // of a mask in memory; if equal, the bits are the mask

template <class R>
struct MasksOf {
  static_assert(kGradCopies<R> >= 1);  // of a gradient in its panel
  FUSED_DROPOUT_OFFERS(GroupMask<R>, expand_mask<R>(some<const uint8_t*>()));  // of packed bits
  // From memory, and back after some steps.
  FUSED_DROPOUT_OFFERS(GroupMask<R>, load_mask<R>(some<const uint8_t*>()));
  FUSED_DROPOUT_OFFERS(void, store_mask(some<uint8_t*>(), some<GroupMask<R>>()));
  // A group's columns, one vector for each step at the address that a function says, and back.
  FUSED_DROPOUT_OFFERS(void, arrange(some<const R*>(), some<R* (*)(int)>()));
  FUSED_DROPOUT_OFFERS(void, restore(some<R* (*)(int)>(), some<R*>()));
  // sum + w * x in the lanes that the mask keeps at this step; then the mask is at the next one.
  FUSED_DROPOUT_OFFERS(Vec<R>, add_kept<true>(some<GroupMask<R>>(), some<int>(), some<const R*>(),
                                              some<Vec<R>>(), some<Vec<R>>()));
  // The same for d_input += w * grad and d_weight += x * grad.
  FUSED_DROPOUT_OFFERS(void, add_gradients<true, true, true>(some<GroupMask<R>>(), some<int>(),
                                                             some<const R*>(), some<Vec<R>>(),
                                                             some<Vec<R>>(), some<Vec<R>>(),
                                                             some<Vec<R>>()));
};
template struct MasksOf<float>;
template struct MasksOf<double>;

// ---- How much is worked on at once: what the registers hold.

static_assert(kForwardRows >= 1);   // of a tile of DropConnect's sums: input rows, times
static_assert(kForwardOuts >= 1);   // output features
static_assert(kGradTileRows >= 1);  // of a tile of its gradients: rows, times
static_assert(kGradSteps >= 1);     // vectors of columns
static_assert(kPhiloxAtOnce >= 1);  // calls in lockstep: one alone waits for its multiplications

#undef FUSED_DROPOUT_OFFERS

}  // namespace
}  // namespace fused_dropout
