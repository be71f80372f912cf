// The arguments of search_grid, checked alike for every backend. For the register*.cpp files only.

#pragma once

#include "cpu/tensor.h"

namespace torchcoinfer {

struct GridArguments {
  Tensor groups, importance, start_scales, start_zeros;  // contiguous
  std::vector<float> shares;
  Dtype scale_dtype;

  int64_t count() const {
    return groups.size(0);
  }
};

inline GridArguments grid_arguments(const Checker& checks, const Tensor& groups, const Tensor& importance,
                                    const Tensor& start_scales, const Tensor& start_zeros,
                                    const std::vector<double>& shares, double unit, ScalarType scale_dtype,
                                    int64_t bits) {
  checks.bits(bits);
  const Dtype stored = checks.floating("scale_dtype", scale_dtype);
  for (const auto& [name, tensor] : {std::pair("groups", groups), std::pair("importance", importance),
                                     std::pair("start_scales", start_scales), std::pair("start_zeros", start_zeros)}) {
    checks.dtype(name, tensor, ScalarType::Float);
    check(tensor.dim() == 2, checks.op, name, "2 dimensions", shape_text(tensor));
  }
  const int64_t count = groups.size(0);
  check(importance.size(0) > 0, checks.op, "importance", "at least one row", shape_text(importance));
  checks.shape("importance", importance, {importance.size(0), groups.size(1)});
  check(start_scales.size(0) > 0, checks.op, "start_scales", "at least one row", shape_text(start_scales));
  checks.shape("start_scales", start_scales, {start_scales.size(0), count});
  checks.shape("start_zeros", start_zeros, {start_scales.size(0), count});
  check(unit > 0, checks.op, "unit", "a positive number", unit);
  using torch::stable::contiguous;
  return {contiguous(groups), contiguous(importance), contiguous(start_scales), contiguous(start_zeros),
          std::vector<float>(shares.begin(), shares.end()), stored};
}

}  // namespace torchcoinfer
