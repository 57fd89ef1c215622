// The functions that tests call by name in the worker process (worker.cpp):
//
//   int scale(float factor, int64_t count, float* data) {...}
//   CUDA_ON_CPU_ENTRY(scale);
//
// Integers, floating-point numbers and pointers to device memory may be parameters. The result is a
// cudaError_t or any other number, which the caller gets back.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace worker {

struct Argument {
  char kind;  // 'i', 'd', or 'b' for a buffer
  int64_t integer;
  double number;
  uint8_t* buffer;
};
using Arguments = std::vector<Argument>;
using Entry = std::function<int(const Arguments&)>;

inline std::map<std::string, Entry>& entries() {
  static std::map<std::string, Entry> table;
  return table;
}

inline void require(bool condition, const char* name, const char* problem) {
  if (condition) return;
  std::fprintf(stderr, "WORKER: %s: %s\n", name, problem);
  std::exit(EXIT_FAILURE);
}

template <class T>
T convert(const char* name, const Argument& argument) {
  if constexpr (std::is_pointer_v<T>) {
    require(argument.kind == 'b', name, "expected an array");
    return reinterpret_cast<T>(argument.buffer);
  } else if constexpr (std::is_floating_point_v<T>) {
    require(argument.kind == 'd', name, "expected a float");
    return static_cast<T>(argument.number);
  } else {
    require(argument.kind == 'i', name, "expected an int");
    return static_cast<T>(argument.integer);
  }
}

template <class... Parameters, size_t... kIndex>
int invoke(const char* name, int (*function)(Parameters...), const Arguments& arguments,
           std::index_sequence<kIndex...>) {
  require(arguments.size() == sizeof...(Parameters), name, "wrong number of arguments");
  return function(convert<Parameters>(name, arguments[kIndex])...);
}

struct Registration {
  template <class... Parameters>
  Registration(const std::string& name, int (*function)(Parameters...)) {
    entries()[name] = [=](const Arguments& arguments) {
      return invoke(name.c_str(), function, arguments, std::index_sequence_for<Parameters...>{});
    };
  }
};

}  // namespace worker

#define CUDA_ON_CPU_ENTRY(function) \
  static const worker::Registration function##_registration(#function, function)
