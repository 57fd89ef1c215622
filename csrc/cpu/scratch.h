// Memory for the time of a call.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace fused_dropout {

// Not initialised, and aligned to a cache line.
template <class T>
class Scratch {
 public:
  explicit Scratch(size_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), kAlignment))) {}
  T* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace fused_dropout
