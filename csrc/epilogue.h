// What a layer does to its output in the same call: an activation function, by torch's own kernels while y is in the
// cache. For the register*.cpp files only.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <array>
#include <string>

#include "check.h"
#include "torch_call.h"

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
    call_torch("aten::gelu_", stack.data());
    return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
  }
  std::array<StableIValue, 1> stack{from(y)};
  call_torch(name == "relu" ? "aten::relu_" : "aten::silu_", stack.data());
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace torchcoinfer
