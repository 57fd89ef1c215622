// What the entries of this folder allocate: memory of the modelled device, by name. The model
// decides what is in it (../device.py); nothing here looks behind a pointer.
#pragma once

#include <cstddef>
#include <cstdint>

// In runtime.cpp. `type` is a name of NumPy's.
extern "C" void* model_memory(const char* name, const char* type, size_t bytes);

namespace fused_dropout {

template <class T>
constexpr const char* kTypeName = nullptr;
template <>
constexpr const char* kTypeName<float> = "float32";
template <>
constexpr const char* kTypeName<double> = "float64";
template <>
constexpr const char* kTypeName<__nv_bfloat16> = "bfloat16";
template <>
constexpr const char* kTypeName<uint32_t> = "uint32";
template <>
constexpr const char* kTypeName<int64_t> = "int64";

template <class T>
T* memory(const char* name, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  return static_cast<T*>(model_memory(name, kTypeName<T>, bytes));
}

}  // namespace fused_dropout
