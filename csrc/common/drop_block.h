// DropBlock's geometry (Ghiasi, Lin and Le 2018). A map of `size` has one seed for each place where
// a whole block fits, size - block + 1 of them along a dimension; a dropped seed drops the block
// that begins there. So an element is dropped iff any seed of the `block` before it, itself
// included, is dropped.
#pragma once

#include <cstdint>

#include "macros.h"
#include "params.h"

namespace fused_dropout {

// Along dimension d.
FUSED_DROPOUT_INLINE int64_t seeds_along(const BlockMaps& maps, int d) {
  return maps.size[d] - maps.block[d] + 1;
}

FUSED_DROPOUT_INLINE int64_t elements_of_map(const BlockMaps& maps) {
  return maps.size[0] * maps.size[1] * maps.size[2];
}

FUSED_DROPOUT_INLINE int64_t seeds_of_map(const BlockMaps& maps) {
  return seeds_along(maps, 0) * seeds_along(maps, 1) * seeds_along(maps, 2);
}

}  // namespace fused_dropout
