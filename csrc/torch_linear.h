// A linear layer by torch's own product. For the register*.cpp files only.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>

#include "torch_call.h"

namespace torchcoinfer {

// x W^T + bias, all of one dtype, which is y's: the stable C++ interface has no linear, and autocast takes part in calls
// through the dispatcher.
inline torch::stable::Tensor torch_linear(const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                                          const std::optional<torch::stable::Tensor>& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(x), from(weight), from(bias)};
  call_torch("aten::linear", stack.data());
  const auto y = torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
  return y.scalar_type() == x.scalar_type() ? y : torch::stable::to(y, x.scalar_type());
}

}  // namespace torchcoinfer
