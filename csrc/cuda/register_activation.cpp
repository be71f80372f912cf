// Codec at the cut: tensors to pointers, checks, registration.

#include "codec_arguments.h"
#include "cuda/arguments.h"

namespace torchcoinfer {
namespace {

std::tuple<Tensor, Tensor, Tensor> encode_activation_op(Tensor x, int64_t bits, std::string granularity,
                                                        int64_t leading_dims) {
  const Checker checks{"encode_activation"};
  const Dtype dtype = checks.floating("x", x);
  const auto given = encode_arguments<cuda::CodecShape>(checks, x, bits, granularity, leading_dims);
  const DeviceGuard guard(x.get_device_index());
  x = torch::stable::contiguous(x);
  std::vector<int64_t> sizes = given.leading;
  sizes.push_back(given.row_bytes());
  Tensor codes = empty_beside(x, sizes, ScalarType::Byte);
  Tensor scale = empty_beside(x, given.of_scale, ScalarType::Float);
  Tensor low = empty_beside(x, given.of_scale, ScalarType::Float);
  const Tensor scratch = empty_beside(x, {cuda::encode_scratch(given.shape)}, ScalarType::Float);
  check_launch(checks, cuda::encode(given.shape, x.const_data_ptr(), element(dtype), mutable_data<float>(scratch),
                                    mutable_data<float>(scale), mutable_data<float>(low), mutable_data<uint8_t>(codes),
                                    current_stream(x)));
  return {codes, scale, low};
}

Tensor decode_activation_op(Tensor codes, Tensor scale, Tensor zero_point, int64_t bits, std::string granularity,
                            std::vector<int64_t> trailing_shape, ScalarType dtype) {
  const Checker checks{"decode_activation"};
  const Dtype kind = checks.floating("dtype", dtype);
  const auto given =
      decode_arguments<cuda::CodecShape>(checks, codes, scale, zero_point, bits, granularity, trailing_shape);
  same_device(checks, "scale", scale, codes);
  same_device(checks, "zero_point", zero_point, codes);
  const DeviceGuard guard(codes.get_device_index());
  codes = torch::stable::contiguous(codes);
  scale = torch::stable::contiguous(scale);
  zero_point = torch::stable::contiguous(zero_point);
  std::vector<int64_t> sizes = given.leading;
  sizes.insert(sizes.end(), trailing_shape.begin(), trailing_shape.end());
  Tensor x = empty_beside(codes, sizes, dtype);
  check_launch(checks, cuda::decode(given.shape, data<uint8_t>(codes), data<float>(scale), data<float>(zero_point),
                                    x.mutable_data_ptr(), element(kind), current_stream(codes)));
  return x;
}

}  // namespace
}  // namespace torchcoinfer

TORCHCOINFER_CUDA_OPS(m) {
  m.impl("encode_activation", TORCH_BOX(&torchcoinfer::encode_activation_op));
  m.impl("decode_activation", TORCH_BOX(&torchcoinfer::decode_activation_op));
}
