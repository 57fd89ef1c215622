// What the kernels need of the system and of the rest of the program. An isa_*.cpp file includes
// this header before it switches its instruction set on: no function of the system's, and none that
// the linker may merge with one of another file, may be compiled for an instruction set that the
// machine might lack. So all other headers of this folder and of common/ hold functions that are
// `static` or in an anonymous namespace, and include none of the system's that hold any.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// What GCC 12 says of its own intrinsics, and of the loop over a row's rest once it is inlined for
// a whole block.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Waggressive-loop-optimizations"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../dispatch.h"
#include "../kernel_types.h"
