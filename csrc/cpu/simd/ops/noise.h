// The noise itself: uniforms and normals.
#pragma once

#include "../../noise.h"

#include "../noise_blocks.h"

namespace fused_dropout::noise {
namespace {

template <class R>
void uniforms(const NoiseRun& run, R* out) {
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R u[kGroupColumns];
    uniforms_of_words(words, u);
    write_block<R>(u, first, count, out);
  });
}

template <class R>
void normals(const NoiseRun& run, R* out) {
  for_each_block(run, [&](const uint32_t* words, int64_t first, int64_t count) {
    R z[kGroupColumns];
    normals_of_words(words, z);
    write_block<R>(z, first, count, out);
  });
}

}  // namespace

static Kernels make_kernels(const Kernels*) {
  return {uniforms<float>, uniforms<double>, normals<float>, normals<double>};
}

}  // namespace fused_dropout::noise

FUSED_DROPOUT_INSTANTIATE(fused_dropout::noise::Kernels);
