// Tensors to plain pointers, with checks. For the register*.cpp files only: kernels see no torch header.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/dtype.h"
#include "layout.h"

namespace torchcoinfer {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline const char* dtype_text(ScalarType dtype) {
  return torch::headeronly::toString(dtype);
}

// Names the op once, then checks one argument a line.
struct Checker {
  const char* op;

  void shape(const char* argument, const Tensor& tensor, std::initializer_list<int64_t> expected) const {
    bool same = tensor.dim() == static_cast<int64_t>(expected.size());
    std::string text = "[";
    int64_t i = 0;
    for (int64_t size : expected) {
      same = same && tensor.size(i) == size;
      text += (i++ ? ", " : "") + std::to_string(size);
    }
    if (!same) check(false, op, argument, "shape " + text + "]", shape_text(tensor));
  }
  void dtype(const char* argument, const Tensor& tensor, ScalarType expected) const {
    const ScalarType got = tensor.scalar_type();
    check(got == expected, op, argument, dtype_text(expected), dtype_text(got));
  }
  Dtype floating(const char* argument, ScalarType got) const {
    if (got == ScalarType::Float) return Dtype::float32;
    if (got == ScalarType::Half) return Dtype::float16;
    check(got == ScalarType::BFloat16, op, argument, "float32, float16 or bfloat16", dtype_text(got));
    return Dtype::bfloat16;
  }
  Dtype floating(const char* argument, const Tensor& tensor) const {
    return floating(argument, tensor.scalar_type());
  }
  void cpu(const char* argument, const Tensor& tensor) const {
    check(tensor.is_cpu(), op, argument, "a CPU tensor like the other arguments", "a tensor on another device");
  }
  void contiguous(const char* argument, const Tensor& tensor) const {
    check(tensor.is_contiguous(), op, argument, "a contiguous tensor (packed buffers are never strided)", "strides");
  }
  void bits(int64_t bits) const {
    check(is_valid_bits(bits), op, "bits", "2, 3, 4, 5, 6 or 8", bits);
  }
  void group_size(int64_t size) const {
    check(is_valid_group_size(size), op, "group_size", "32, 64, 128 or 0 (whole row)", size);
  }
  void layout(int64_t layout) const {
    check(layout == 0, op, "layout", "0 (canonical; the CPU kernels know no other)", layout);
  }
  void positive(const char* argument, int64_t value) const {
    check(value > 0, op, argument, "a positive integer", value);
  }
  // Static scales of x [.., K], which go with int8 activations.
  void static_scales(const Tensor& scales, int64_t K, int64_t activation_bits) const {
    check(activation_bits == 8, op, "x_scales", "activation_bits 8 beside it", activation_bits);
    dtype("x_scales", scales, ScalarType::Float);
    shape("x_scales", scales, {K});
    contiguous("x_scales", scales);
  }
  // The values of argument 'bias', [N] of any floating dtype; empty where there is none.
  std::vector<float> bias(const std::optional<Tensor>& bias, int64_t N) const {
    if (!bias.has_value()) return {};
    const Dtype dtype = floating("bias", *bias);
    shape("bias", *bias, {N});
    cpu("bias", *bias);
    const Tensor whole = torch::stable::contiguous(*bias);
    const void* source = whole.const_data_ptr();
    std::vector<float> values(N);
    for (int64_t n = 0; n < N; ++n) values[n] = load_float(source, dtype, n);
    return values;
  }
};

// The rows of x [.., K], and the size [.., N] of what a layer makes of them.
struct RowsOf {
  int64_t rows = 1;
  std::vector<int64_t> size;

  RowsOf(const Tensor& x, int64_t N) {
    for (int64_t i = 0; i + 1 < x.dim(); ++i) {
      size.push_back(x.size(i));
      rows *= x.size(i);
    }
    size.push_back(N);
  }
};

// body(begin, end) over parts of [0, count), `grain` at least each, on torch's threads: what the kernels take as their
// ParallelFor.
inline void on_torch_threads(int64_t count, int64_t grain,
                             const std::function<void(int64_t begin, int64_t end)>& body) {
  torch::stable::parallel_for(0, count, grain, body);
}

// A new CPU tensor, uninitialized.
inline Tensor empty_cpu(const std::vector<int64_t>& size, ScalarType dtype) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::empty({size.data(), size.size()}, dtype, std::nullopt, cpu);
}

inline Tensor zeros_cpu(const std::vector<int64_t>& size, ScalarType dtype) {
  Tensor tensor = empty_cpu(size, dtype);
  return tensor.numel() ? torch::stable::zero_(tensor) : tensor;
}

template <typename T>
inline const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
inline T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace torchcoinfer
