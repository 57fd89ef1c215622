// In the place of the compiler's own <immintrin.h>: the intrinsics that the CPU kernels use, in
// plain C++. SIMD Everywhere (Debian's libsimde-dev) has most of them, missing_intrinsics.h the
// rest.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include "missing_intrinsics.h"
