// LibTorch's stable ABI, and all that it lacks: the only way from this project to torch.
//
// The bindings call nothing but C functions that torch promises to keep, of release 2.11 at most
// (TORCH_TARGET_VERSION in setup.py). So one binary runs on torch 2.11 and every later release,
// and the CUDA half needs no CUDA build of torch to compile. No kernel includes this header.
//
// What the stable ABI of 2.11 has not, and what stands in for it:
//   * Exception types. Every C++ exception becomes a RuntimeError, so `fail` throws nothing else;
//     std::invalid_argument would be a ValueError, but only up to torch 2.14. The functions of
//     fused_dropout raise ValueError, TypeError and IndexError in Python, before an operator runs.
//   * The text of an error inside torch. Arguments are checked before torch is called; what is left
//     is running out of memory, which `empty` reports.
//   * Tests for gaps and overlaps: is_dense, check_no_overlap.
//   * Strides of results that are no copies: empty, new_like.
//   * at::Generator and its Philox state (2.16): Python draws, operators take the state.
//   * Operator tags (2.12). All operators are pure functions of their arguments, or change their
//     first one as their schema says: they need none.
//   * cudaStream_t of the current stream (Stream::nativeHandle, 2.13): cuda/binding.h.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fused_dropout {

using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// ---- What a tensor is.

using Dtype = int32_t;  // torch's number

struct Dtypes {
  Dtype float32 = aoti_torch_dtype_float32(), float64 = aoti_torch_dtype_float64(),
        float16 = aoti_torch_dtype_float16(), bfloat16 = aoti_torch_dtype_bfloat16(),
        int64 = aoti_torch_dtype_int64(), int32 = aoti_torch_dtype_int32(),
        boolean = aoti_torch_dtype_bool();
};

inline const Dtypes& dtypes() {
  static const Dtypes all;
  return all;
}

inline Dtype dtype_of(const Tensor& tensor) {
  Dtype dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

struct Device {
  int32_t type;
  int32_t index;
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
};

inline Device device_of(const Tensor& tensor) {
  Device device;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device.type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device.index));
  return device;
}

inline bool on_same_device(const Tensor& a, const Tensor& b) {
  return (a.is_cpu() && b.is_cpu()) || device_of(a) == device_of(b);
}

inline bool same_sizes(Sizes a, Sizes b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

// ---- Errors.

struct DtypeName {
  Dtype dtype;
};

// torch of another release may have dtypes that its headers here do not know. An undefined tensor,
// as which None arrives where a tensor is required, has none at all.
inline std::ostream& operator<<(std::ostream& out, DtypeName name) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  try {
    return out << toString(to<torch::headeronly::ScalarType>(from(name.dtype)));
  } catch (const std::exception&) {
    return out << "an unknown dtype";
  }
}

inline std::ostream& operator<<(std::ostream& out, Sizes sizes) {
  out << '[';
  for (size_t d = 0; d < sizes.size(); ++d) out << (d == 0 ? "" : ", ") << sizes[d];
  return out << ']';
}

inline std::ostream& operator<<(std::ostream& out, Device device) {
  if (device.type == aoti_torch_device_type_cpu()) return out << "cpu";
  if (device.type == aoti_torch_device_type_cuda()) return out << "cuda:" << device.index;
  return out << "device " << device.type << ":" << device.index;
}

template <class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// The parts of the message are computed only for a check that fails.
#define FUSED_DROPOUT_CHECK(condition, ...)               \
  do {                                                    \
    if (!(condition)) ::fused_dropout::fail(__VA_ARGS__); \
  } while (false)

// ---- Where the elements of a tensor lie.

constexpr size_t kMostDims = 64;  // torch's own limit

// Whether the elements fill their memory without gaps or overlaps, in some order of dimensions.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  const Sizes sizes = tensor.sizes();
  const Sizes strides = tensor.strides();
  size_t order[kMostDims];
  size_t count = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1) order[count++] = d;
  }
  std::sort(order, order + count, [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (size_t k = 0; k < count; ++k) {
    if (strides[order[k]] != expected) return false;
    expected *= sizes[order[k]];
  }
  return true;
}

// For a tensor that will be written to. As torch's own check, it finds expanded dimensions only.
inline void check_no_overlap(const Tensor& tensor) {
  if (is_dense(tensor)) return;
  const Sizes sizes = tensor.sizes();
  const Sizes strides = tensor.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    FUSED_DROPOUT_CHECK(strides[d] != 0 || sizes[d] < 2,
                        "unsupported operation: more than one element of the written-to tensor "
                        "refers to a single memory location. Please clone() the tensor before "
                        "performing the operation.");
  }
}

// ---- New tensors.

inline Tensor empty_strided(Sizes sizes, Sizes strides, Dtype dtype, Device device) {
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               dtype, device.type, device.index, &handle);
  FUSED_DROPOUT_CHECK(error == AOTI_TORCH_SUCCESS, "out of memory: torch could not allocate a ",
                      DtypeName{dtype}, " tensor ", sizes, " on ", device);
  return Tensor(handle);
}

// In row-major order.
inline Tensor empty(Sizes sizes, Dtype dtype, Device device) {
  FUSED_DROPOUT_CHECK(sizes.size() <= kMostDims, "a tensor has at most ", kMostDims,
                      " dimensions, got ", sizes.size());
  int64_t strides[kMostDims];
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(1, sizes[d])) {
    strides[d] = stride;
  }
  return empty_strided(sizes, Sizes(strides, sizes.size()), dtype, device);
}

// The same on the device of `like`.
inline Tensor empty(Sizes sizes, Dtype dtype, const Tensor& like) {
  return empty(sizes, dtype, device_of(like));
}

// With the strides of torch's own results on `like`.
inline Tensor new_like(const Tensor& like) {
  if (!is_dense(like)) return torch::stable::empty_like(like);
  return empty_strided(like.sizes(), like.strides(), dtype_of(like), device_of(like));
}

inline Tensor full(Sizes sizes, double value, Dtype dtype, const Tensor& like) {
  return torch::stable::fill_(empty(sizes, dtype, like), value);
}

// ---- Copies.

inline void copy(const Tensor& from, const Tensor& to) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(to.get(), from.get(), 0));
}

// A copy of `from` that lies in memory as torch's own results on `like`, of the same sizes, do.
inline Tensor copy_like(const Tensor& from, const Tensor& like) {
  Tensor out = new_like(like);
  copy(from, out);
  return out;
}

// `tensor` itself, or a copy in row-major order.
inline Tensor row_major(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> row_major(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(row_major(*tensor)) : std::nullopt;
}

// Whether the functions above gave back the tensor that they were called with.
inline bool is_same(const Tensor& a, const Tensor& b) { return a.get() == b.get(); }

// ---- Pointers to the first element.

template <class T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data_of<T>(*tensor) : nullptr;
}

// ---- torch's matrix products.

// A tensor on memory of `device` that outlives it, and that no gradient is recorded of.
inline Tensor on_memory(const void* data, Sizes sizes, Sizes strides, Dtype dtype, Device device) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      const_cast<void*>(data), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
      dtype, device.type, device.index, &handle));
  return Tensor(handle);
}

// out = a b: matrices, or batches of them.
inline void multiply_into(const Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(a), from(b), from(out)};
  const char* const name = out.dim() == 3 ? "aten::bmm" : "aten::mm";
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "out", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the same tensor, whose handle is ours to free
}

// out = a weight^T + bias, as torch's own linear layer has it.
inline void linear_into(const Tensor& out, const Tensor& a, const Tensor& weight,
                        const std::optional<Tensor>& bias) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(a), from(weight), from(bias), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // as in multiply_into
}

// ---- Operators.

template <size_t kCount>
void define(torch::stable::detail::StableLibrary& library, const char* const (&schemas)[kCount]) {
  for (const char* schema : schemas) library.def(schema);
}

}  // namespace fused_dropout
