// A linear layer by torch's own product. For the register*.cpp files only.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>

#include "torch_call.h"

namespace torchcoinfer {

// The values alone: autograd takes part in calls through the dispatcher, too, and would keep, and later read, a weight
// that is decoded anew part by part.
inline torch::stable::Tensor detached(const torch::stable::Tensor& x) {
  StableIValue stack[] = {torch::stable::detail::from(x)};
  call_torch("aten::detach", stack);
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

// x W^T + bias, all of one dtype, which is y's: the stable C++ interface has no linear, and autocast takes part in calls
// through the dispatcher.
inline torch::stable::Tensor torch_linear(const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                                          const std::optional<torch::stable::Tensor>& bias) {
  using torch::stable::detail::from;
  std::optional<torch::stable::Tensor> beside;
  if (bias.has_value()) beside = detached(*bias);
  std::array<StableIValue, 3> stack{from(detached(x)), from(weight), from(beside)};
  call_torch("aten::linear", stack.data());
  const auto y = torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
  return y.scalar_type() == x.scalar_type() ? y : torch::stable::to(y, x.scalar_type());
}

}  // namespace torchcoinfer
