// What a layer does to its output in the same call: an activation function, by torch's own kernels while y is in the
// cache. For the register*.cpp files only.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <string>

#include "check.h"

namespace torchcoinfer {

inline void check_activation(const char* op, const std::string& name) {
  const bool known = name == "none" || name == "relu" || name == "gelu" || name == "gelu_tanh" || name == "silu";
  check(known, op, "activation", "'none', 'relu', 'gelu', 'gelu_tanh' or 'silu'", name);
}

// y itself, changed in place.
inline torch::stable::Tensor activated(torch::stable::Tensor y, const std::string& name) {
  using torch::stable::detail::from;
  if (name == "none") return y;
  if (name == "gelu" || name == "gelu_tanh") {
    std::array<StableIValue, 2> stack{from(y), from(std::string(name == "gelu" ? "none" : "tanh"))};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::gelu_", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
  }
  std::array<StableIValue, 1> stack{from(y)};
  const char* op = name == "relu" ? "aten::relu_" : "aten::silu_";
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace torchcoinfer
