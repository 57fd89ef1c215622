// A block's shared memory.
#pragma once

#include <cstddef>

namespace emulator {

// Fresh memory for the next block, full of `poison`, and (once the grid has ended) back with that
// of all blocks. TSan would see every reuse of an address by a later block as a race, so its build
// reuses nothing within a grid.
void begin_block_memory(size_t dynamic_bytes, unsigned char poison);
void end_grid_memory();

}  // namespace emulator
