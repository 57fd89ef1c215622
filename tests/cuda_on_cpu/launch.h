// compat.h's launch_kernel.
#pragma once

#include <tuple>
#include <utility>

#include "runtime.h"

namespace emulator {

// Ends in "kKernel = <name of the kernel>]".
template <auto kKernel>
const char* kernel_name() {
  return __PRETTY_FUNCTION__;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   size_t shared_bytes, Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> values;
  };
  Call call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  const auto run_thread = [](void* data) {
    const Call& call = *static_cast<const Call*>(data);
    std::apply(call.kernel, call.values);
  };
  return run_grid(name, grid, block, shared_bytes, run_thread, &call);
}

}  // namespace emulator

namespace fused_dropout {

template <auto kKernel, class... Arguments>
cudaError_t launch_kernel(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                          Arguments&&... arguments) {
  return emulator::launch(emulator::kernel_name<kKernel>(), kKernel, grid, block, shared_bytes,
                          std::forward<Arguments>(arguments)...);
}

// As if there were an H200, with room for two blocks on each multiprocessor.
template <auto kKernel>
int64_t resident_blocks(int, size_t) {
  return 2 * 132;
}

}  // namespace fused_dropout
