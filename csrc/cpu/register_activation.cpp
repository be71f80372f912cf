// Codec at the cut: tensors to pointers, checks, threads, registration.

#include "cpu/activation.h"
#include "cpu/isa.h"
#include "cpu/tensor.h"

namespace torchcoinfer {
namespace {

constexpr int64_t VALUE_GRAIN = 1 << 14;  // values that are worth a thread

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  return count;
}

int64_t grain(int64_t values_each) {
  return ceil_div(VALUE_GRAIN, values_each > 0 ? values_each : 1);
}

bool by_token(const Checker& checks, const std::string& granularity) {
  const bool token = granularity == "token";
  check(token || granularity == "channel", checks.op, "granularity", "'token' or 'channel'", granularity);
  return token;
}

CodecShape codec_shape(const Checker& checks, const std::vector<int64_t>& leading,
                       const std::vector<int64_t>& trailing, int64_t bits, const std::string& granularity) {
  check(bits >= 2 && bits <= 8, checks.op, "bits", "2 to 8", bits);
  return {product(leading), product(trailing), trailing.back(), static_cast<int>(bits), by_token(checks, granularity)};
}

std::tuple<Tensor, Tensor, Tensor> encode_activation_op(Tensor x, int64_t bits, std::string granularity,
                                                        int64_t leading_dims) {
  const Checker checks{"encode_activation"};
  const Dtype dtype = checks.floating("x", x);
  check(leading_dims >= 0 && leading_dims < x.dim(), checks.op, "leading_dims",
        "0 to " + std::to_string(x.dim() - 1) + ", so that a dim of x follows", leading_dims);
  x = torch::stable::contiguous(x);
  std::vector<int64_t> sizes, trailing;
  for (int64_t i = 0; i < x.dim(); ++i) (i < leading_dims ? sizes : trailing).push_back(x.size(i));
  const CodecShape shape = codec_shape(checks, sizes, trailing, bits, granularity);
  const std::vector<int64_t> of_scale = shape.by_token ? sizes : std::vector<int64_t>{shape.channels};
  sizes.push_back(shape.row_bytes());
  Tensor codes = empty_cpu(sizes, ScalarType::Byte);
  Tensor scale = empty_cpu(of_scale, ScalarType::Float), low = empty_cpu(of_scale, ScalarType::Float);
  const void* source = x.const_data_ptr();
  float* scale_data = mutable_data<float>(scale);
  float* low_data = mutable_data<float>(low);
  uint8_t* target = mutable_data<uint8_t>(codes);
  const Isa isa = active_isa();
  const int64_t parts = shape.by_token ? shape.rows : shape.channels;
  const int64_t part_values = shape.by_token ? shape.n : shape.rows * shape.n / (parts > 0 ? parts : 1);
  torch::stable::parallel_for(0, parts, grain(part_values), [&](int64_t begin, int64_t end) {
    activation_range(shape, source, dtype, isa, begin, end, scale_data, low_data);
  });
  torch::stable::parallel_for(0, shape.rows, grain(shape.n), [&](int64_t begin, int64_t end) {
    encode_rows(shape, source, dtype, scale_data, low_data, isa, begin, end, target);
  });
  return {codes, scale, low};
}

Tensor decode_activation_op(Tensor codes, Tensor scale, Tensor zero_point, int64_t bits, std::string granularity,
                            std::vector<int64_t> trailing_shape, ScalarType dtype) {
  const Checker checks{"decode_activation"};
  const Dtype kind = checks.floating("dtype", dtype);
  checks.dtype("codes", codes, ScalarType::Byte);
  check(codes.dim() > 0, checks.op, "codes", "at least 1 dimension", shape_text(codes));
  check(!trailing_shape.empty(), checks.op, "trailing_shape", "at least 1 dimension", "none");
  for (int64_t size : trailing_shape) check(size >= 0, checks.op, "trailing_shape", "sizes of 0 or more", size);
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i + 1 < codes.dim(); ++i) sizes.push_back(codes.size(i));
  const CodecShape shape = codec_shape(checks, sizes, trailing_shape, bits, granularity);
  const int64_t bytes = codes.size(codes.dim() - 1);
  check(bytes == shape.row_bytes(), checks.op, "codes", std::to_string(shape.row_bytes()) + " bytes a row", bytes);
  for (const auto& [name, tensor] : {std::pair("scale", scale), std::pair("zero_point", zero_point)}) {
    checks.dtype(name, tensor, ScalarType::Float);
    bool same = tensor.dim() == (shape.by_token ? codes.dim() - 1 : 1);
    for (int64_t i = 0; same && i < tensor.dim(); ++i)
      same = tensor.size(i) == (shape.by_token ? codes.size(i) : shape.channels);
    check(same, checks.op, name, shape.by_token ? "one value a row" : "one value a channel", shape_text(tensor));
  }
  codes = torch::stable::contiguous(codes);
  scale = torch::stable::contiguous(scale);
  zero_point = torch::stable::contiguous(zero_point);
  sizes.insert(sizes.end(), trailing_shape.begin(), trailing_shape.end());
  Tensor x = empty_cpu(sizes, dtype);
  void* target = x.mutable_data_ptr();
  const Isa isa = active_isa();
  torch::stable::parallel_for(0, shape.rows, grain(shape.n), [&](int64_t begin, int64_t end) {
    decode_rows(shape, data<uint8_t>(codes), data<float>(scale), data<float>(zero_point), kind, isa, begin, end,
                target);
  });
  return x;
}

}  // namespace
}  // namespace torchcoinfer

STABLE_TORCH_LIBRARY_IMPL(torchcoinfer, CPU, m) {
  m.impl("encode_activation", TORCH_BOX(&torchcoinfer::encode_activation_op));
  m.impl("decode_activation", TORCH_BOX(&torchcoinfer::decode_activation_op));
}
