// Codec at the cut: tensors to pointers, checks, registration.

#include "cuda/arguments.h"

namespace torchcoinfer {
namespace {

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return count;
}

cuda::CodecShape codec_shape(const Checker& checks, const std::vector<int64_t>& leading,
                             const std::vector<int64_t>& trailing, int64_t bits, const std::string& granularity) {
  check(bits >= 2 && bits <= 8, checks.op, "bits", "2 to 8", bits);
  const bool token = granularity == "token";
  check(token || granularity == "channel", checks.op, "granularity", "'token' or 'channel'", granularity);
  return {product(leading), product(trailing), trailing.back(), static_cast<int>(bits), token};
}

std::tuple<Tensor, Tensor, Tensor> encode_activation_op(Tensor x, int64_t bits, std::string granularity,
                                                        int64_t leading_dims) {
  const Checker checks{"encode_activation"};
  const Dtype dtype = checks.floating("x", x);
  check(leading_dims >= 0 && leading_dims < x.dim(), checks.op, "leading_dims",
        "0 to " + std::to_string(x.dim() - 1) + ", so that a dim of x follows", leading_dims);
  const DeviceGuard guard(x.get_device_index());
  x = torch::stable::contiguous(x);
  std::vector<int64_t> sizes, trailing;
  for (int64_t i = 0; i < x.dim(); ++i) (i < leading_dims ? sizes : trailing).push_back(x.size(i));
  const cuda::CodecShape shape = codec_shape(checks, sizes, trailing, bits, granularity);
  const std::vector<int64_t> of_scale = shape.by_token ? sizes : std::vector<int64_t>{shape.channels};
  sizes.push_back(ceil_div(shape.n * bits, 8));
  Tensor codes = empty_beside(x, sizes, ScalarType::Byte);
  Tensor scale = empty_beside(x, of_scale, ScalarType::Float), low = empty_beside(x, of_scale, ScalarType::Float);
  const Tensor scratch = empty_beside(x, {cuda::encode_scratch(shape)}, ScalarType::Float);
  check_launch(checks, cuda::encode(shape, x.const_data_ptr(), element(dtype), mutable_data<float>(scratch),
                                    mutable_data<float>(scale), mutable_data<float>(low), mutable_data<uint8_t>(codes),
                                    current_stream(x)));
  return {codes, scale, low};
}

Tensor decode_activation_op(Tensor codes, Tensor scale, Tensor zero_point, int64_t bits, std::string granularity,
                            std::vector<int64_t> trailing_shape, ScalarType dtype) {
  const Checker checks{"decode_activation"};
  const Dtype kind = checks.floating("dtype", dtype);
  checks.dtype("codes", codes, ScalarType::Byte);
  check(codes.dim() > 0, checks.op, "codes", "at least 1 dimension", shape_text(codes));
  check(!trailing_shape.empty(), checks.op, "trailing_shape", "at least 1 dimension", "none");
  for (const int64_t size : trailing_shape) check(size >= 0, checks.op, "trailing_shape", "sizes of 0 or more", size);
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i + 1 < codes.dim(); ++i) sizes.push_back(codes.size(i));
  const cuda::CodecShape shape = codec_shape(checks, sizes, trailing_shape, bits, granularity);
  const int64_t bytes = codes.size(codes.dim() - 1), expected = ceil_div(shape.n * bits, 8);
  check(bytes == expected, checks.op, "codes", std::to_string(expected) + " bytes a row", bytes);
  for (const auto& [name, tensor] : {std::pair("scale", scale), std::pair("zero_point", zero_point)}) {
    checks.dtype(name, tensor, ScalarType::Float);
    same_device(checks, name, tensor, codes);
    bool same = tensor.dim() == (shape.by_token ? codes.dim() - 1 : 1);
    for (int64_t i = 0; same && i < tensor.dim(); ++i)
      same = tensor.size(i) == (shape.by_token ? codes.size(i) : shape.channels);
    check(same, checks.op, name, shape.by_token ? "one value a row" : "one value a channel", shape_text(tensor));
  }
  const DeviceGuard guard(codes.get_device_index());
  codes = torch::stable::contiguous(codes);
  scale = torch::stable::contiguous(scale);
  zero_point = torch::stable::contiguous(zero_point);
  sizes.insert(sizes.end(), trailing_shape.begin(), trailing_shape.end());
  Tensor x = empty_beside(codes, sizes, dtype);
  check_launch(checks, cuda::decode(shape, data<uint8_t>(codes), data<float>(scale), data<float>(zero_point),
                                    x.mutable_data_ptr(), element(kind), current_stream(codes)));
  return x;
}

}  // namespace
}  // namespace torchcoinfer

TORCHCOINFER_CUDA_OPS(m) {
  m.impl("encode_activation", TORCH_BOX(&torchcoinfer::encode_activation_op));
  m.impl("decode_activation", TORCH_BOX(&torchcoinfer::decode_activation_op));
}
