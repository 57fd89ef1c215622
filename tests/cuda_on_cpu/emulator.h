// Runs CUDA kernels on a CPU, so that machines without a GPU, nvcc or NVIDIA's headers prove them.
//
// csrc/cuda/compat.h includes this file where the compiler is not nvcc, and the kernel files
// compile as they are. One OS thread runs everything: each CUDA thread of a block is a fiber, each
// warp runs as far ahead of the others as it may, and blocks run one after another. What that
// shows:
//
//   results     Shared memory starts as NaN (in reverse order as 8e37); asynchronous copies land as
//               late as they may; three schedules (forward, reverse, random) run warps, lanes and
//               blocks in different orders.
//   deadlocks   and barriers or warp operations that threads of a block or lanes of a warp do not
//               reach together: a message with file and line, exit status 77.
//   bounds      in an ASan + UBSan build. Allocations, dynamic and static shared memory end exactly
//               where the kernel was told.
//   alignment   in the same build: an access of 8 or 16 bytes must be aligned to as many, as a GPU
//               demands.
//   races       in a TSan build. A CUDA thread is a TSan fiber of its own; only barriers,
//               __syncwarp, and fences around atomics order what two of them do. Shuffles, votes
//               and the schedule itself do not.
//
// What it cannot show: performance, inline PTX (ptx_models.h stands in for it),
// what nvcc makes of the code, and kernels whose blocks wait for each other.
//
// Reading order: types.h, runtime.h (what the scheduler offers), sync.h, intrinsics.h, atomics.h,
// launch.h, ptx_models.h; then scheduler.cpp, fiber.cpp and memory.cpp, which are compiled without
// instrumentation so that the sanitizers see what kernels do and nothing else.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "atomics.h"
#include "intrinsics.h"
#include "launch.h"
#include "ptx_models.h"
#include "runtime.h"
#include "sync.h"
#include "types.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define FUSED_DROPOUT_DEVICE inline

// Every expansion is a variable of its own, told apart by the address of `variable`.
#define FUSED_DROPOUT_SHARED(T, name, dims) \
  using name##_array = T dims;              \
  static const char name##_variable = 0;    \
  auto& name =                              \
      *static_cast<name##_array*>(emulator::static_shared(&name##_variable, sizeof(name##_array)))

#define FUSED_DROPOUT_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(emulator::dynamic_shared())
