// The arguments of the codec at the cut, checked alike for every backend. For the register*.cpp files only.

#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cpu/tensor.h"

namespace torchcoinfer {

// Shape: the CodecShape of a backend.
template <typename Shape>
struct CodecArguments {
  Shape shape;
  std::vector<int64_t> leading;   // dims of x that stay
  std::vector<int64_t> of_scale;  // dims of scale and zero point

  CodecArguments(const Checker& checks, std::vector<int64_t> of_rows, const std::vector<int64_t>& trailing,
                 int64_t bits, const std::string& granularity)
      : leading(std::move(of_rows)) {
    check(bits >= 2 && bits <= 8, checks.op, "bits", "2 to 8", bits);
    const bool token = granularity == "token";
    check(token || granularity == "channel", checks.op, "granularity", "'token' or 'channel'", granularity);
    shape = {product(leading), product(trailing), trailing.back(), static_cast<int>(bits), token};
    of_scale = token ? leading : std::vector<int64_t>{shape.channels};
  }
  int64_t row_bytes() const {
    return ceil_div(shape.n * shape.bits, 8);
  }

 private:
  static int64_t product(const std::vector<int64_t>& sizes) {
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    return count;
  }
};

template <typename Shape>
CodecArguments<Shape> encode_arguments(const Checker& checks, const Tensor& x, int64_t bits,
                                       const std::string& granularity, int64_t leading_dims) {
  check(leading_dims >= 0 && leading_dims < x.dim(), checks.op, "leading_dims",
        "0 to " + std::to_string(x.dim() - 1) + ", so that a dim of x follows", leading_dims);
  std::vector<int64_t> leading, trailing;
  for (int64_t i = 0; i < x.dim(); ++i) (i < leading_dims ? leading : trailing).push_back(x.size(i));
  return {checks, std::move(leading), trailing, bits, granularity};
}

template <typename Shape>
CodecArguments<Shape> decode_arguments(const Checker& checks, const Tensor& codes, const Tensor& scale,
                                       const Tensor& zero_point, int64_t bits, const std::string& granularity,
                                       const std::vector<int64_t>& trailing_shape) {
  checks.dtype("codes", codes, ScalarType::Byte);
  check(codes.dim() > 0, checks.op, "codes", "at least 1 dimension", shape_text(codes));
  check(!trailing_shape.empty(), checks.op, "trailing_shape", "at least 1 dimension", "none");
  for (const int64_t size : trailing_shape) check(size >= 0, checks.op, "trailing_shape", "sizes of 0 or more", size);
  std::vector<int64_t> leading;
  for (int64_t i = 0; i + 1 < codes.dim(); ++i) leading.push_back(codes.size(i));
  const CodecArguments<Shape> given(checks, std::move(leading), trailing_shape, bits, granularity);
  const int64_t bytes = codes.size(codes.dim() - 1);
  check(bytes == given.row_bytes(), checks.op, "codes", std::to_string(given.row_bytes()) + " bytes a row", bytes);
  for (const auto& [name, tensor] : {std::pair("scale", scale), std::pair("zero_point", zero_point)}) {
    checks.dtype(name, tensor, ScalarType::Float);
    bool same = tensor.dim() == static_cast<int64_t>(given.of_scale.size());
    for (int64_t i = 0; same && i < tensor.dim(); ++i) same = tensor.size(i) == given.of_scale[i];
    check(same, checks.op, name, given.shape.by_token ? "one value a row" : "one value a channel", shape_text(tensor));
  }
  return given;
}

}  // namespace torchcoinfer
