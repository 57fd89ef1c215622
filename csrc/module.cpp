// The module of build facts. The operators are in torch.ops.fused_dropout; each binding registers
// its own.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_facts.h"  // written by setup.py
#include "cpu/dispatch.h"

namespace {

pybind11::dict build_facts() {
  pybind11::dict facts;
  facts["version"] = FUSED_DROPOUT_VERSION;
  facts["commit"] = FUSED_DROPOUT_COMMIT;
  facts["torch"] = FUSED_DROPOUT_TORCH_VERSION;
  facts["oldest_torch"] = FUSED_DROPOUT_OLDEST_TORCH;
#if defined(__clang__)
  facts["compiler"] = "clang " __clang_version__;
#else
  facts["compiler"] = "gcc " __VERSION__;
#endif
  facts["cuda"] = FUSED_DROPOUT_CUDA_VERSION;
  facts["cuda_architectures"] = FUSED_DROPOUT_CUDA_ARCHITECTURES;
#if defined(__x86_64__)
  facts["isas"] = std::vector<std::string>{"avx512", "avx2", "plain"};
#else
  facts["isas"] = std::vector<std::string>{"plain"};
#endif
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts of fused_dropout; the operators are in torch.ops.fused_dropout.";
  m.def("build_facts", build_facts);
  m.def("available_isas", fused_dropout::available_isas);
  m.def("current_isa", fused_dropout::current_isa_name);
  m.def("set_isa", fused_dropout::set_isa, pybind11::arg("name"));
}
