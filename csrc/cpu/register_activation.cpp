// Codec at the cut: tensors to pointers, checks, threads, registration.

#include "codec_arguments.h"
#include "cpu/activation.h"
#include "cpu/isa.h"

namespace torchcoinfer {
namespace {

constexpr int64_t VALUE_GRAIN = 1 << 14;  // values that are worth a thread

int64_t grain(int64_t values_each) {
  return ceil_div(VALUE_GRAIN, values_each > 0 ? values_each : 1);
}

std::tuple<Tensor, Tensor, Tensor> encode_activation_op(Tensor x, int64_t bits, std::string granularity,
                                                        int64_t leading_dims) {
  const Checker checks{"encode_activation"};
  const Dtype dtype = checks.floating("x", x);
  const auto given = encode_arguments<CodecShape>(checks, x, bits, granularity, leading_dims);
  const CodecShape& shape = given.shape;
  x = torch::stable::contiguous(x);
  std::vector<int64_t> sizes = given.leading;
  sizes.push_back(given.row_bytes());
  Tensor codes = empty_cpu(sizes, ScalarType::Byte);
  Tensor scale = empty_cpu(given.of_scale, ScalarType::Float), low = empty_cpu(given.of_scale, ScalarType::Float);
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
  const auto given = decode_arguments<CodecShape>(checks, codes, scale, zero_point, bits, granularity, trailing_shape);
  const CodecShape& shape = given.shape;
  codes = torch::stable::contiguous(codes);
  scale = torch::stable::contiguous(scale);
  zero_point = torch::stable::contiguous(zero_point);
  std::vector<int64_t> sizes = given.leading;
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
