// CUDA kernels: tensors to pointers, checks, the current stream, registration. The CUDA side's only file with torch
// headers.

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace torchcoinfer {
namespace {

cuda::Element element(Dtype dtype) {
  return dtype == Dtype::float32   ? cuda::Element::float32
         : dtype == Dtype::float16 ? cuda::Element::float16
                                   : cuda::Element::bfloat16;
}

void check_launch(const Checker& checks, const char* error) {
  check(error == nullptr, checks.op, "device", "a launch without error", error ? error : "");
}

void same_device(const Checker& checks, const char* argument, const Tensor& tensor, const Tensor& as) {
  check(is_beside(tensor, as), checks.op, argument, "a tensor on the CUDA device of the other arguments",
        "another device");
}

cuda::DenseMatrix dense_matrix(const Checker& checks, const Tensor& packed, const Tensor& scales,
                               const std::optional<Tensor>& zeros, int64_t bits, int64_t group_size, int64_t N,
                               int64_t K) {
  checks.bits(bits);
  checks.group_size(group_size);
  const int width = static_cast<int>(bits);
  const int64_t blocks = ceil_div(N, BLOCK_N), groups = group_count(K, group_size);
  checks.dtype("packed", packed, ScalarType::Byte);
  checks.shape("packed", packed, {blocks, ceil_div(K, TILE_K), tile_bytes(width)});
  checks.contiguous("packed", packed);
  const Dtype scale_dtype = checks.floating("scales", scales);
  checks.shape("scales", scales, {blocks, groups, BLOCK_N});
  checks.contiguous("scales", scales);
  same_device(checks, "scales", scales, packed);
  const bool asymmetric = zeros.has_value() && zeros->numel() > 0;
  if (asymmetric) {
    checks.dtype("zeros", *zeros, ScalarType::Byte);
    checks.shape("zeros", *zeros, {blocks, groups, BLOCK_N});
    checks.contiguous("zeros", *zeros);
    same_device(checks, "zeros", *zeros, packed);
  }
  return {data<uint8_t>(packed), scales.const_data_ptr(), asymmetric ? data<uint8_t>(*zeros) : nullptr,
          element(scale_dtype),  width,                   group_size,
          N,                     K};
}

Tensor dequantize_op(Tensor packed, Tensor scales, std::optional<Tensor> zeros, int64_t bits, int64_t group_size,
                     int64_t N, int64_t K, ScalarType dtype) {
  const Checker checks{"dequantize"};
  const cuda::DenseMatrix matrix = dense_matrix(checks, packed, scales, zeros, bits, group_size, N, K);
  const Dtype kind = checks.floating("dtype", dtype);
  const DeviceGuard guard(packed.get_device_index());
  Tensor weight = torch::stable::new_empty(packed, {N, K}, dtype);
  check_launch(checks,
               cuda::dequantize(matrix, weight.mutable_data_ptr(), element(kind), current_stream(packed)));
  return weight;
}

Tensor quant_linear_op(Tensor x, Tensor packed, Tensor scales, std::optional<Tensor> zeros, std::optional<Tensor> bias,
                       int64_t bits, int64_t group_size, int64_t out_features, int64_t activation_bits,
                       int64_t layout) {
  const Checker checks{"quant_linear"};
  check(layout == 0, checks.op, "layout", "0 (canonical; the CUDA kernels know no other yet)", layout);
  check(activation_bits == 0 || activation_bits == 8, checks.op, "activation_bits", "0 (weight-only) or 8",
        activation_bits);
  check(x.dim() >= 1, checks.op, "x", "at least 1 dimension [..., K]", shape_text(x));
  const Dtype dtype = checks.floating("x", x);
  const int64_t N = out_features, K = x.size(-1);
  same_device(checks, "x", x, packed);
  const cuda::DenseMatrix matrix = dense_matrix(checks, packed, scales, zeros, bits, group_size, N, K);
  const DeviceGuard guard(x.get_device_index());
  Tensor bias_values;
  if (bias.has_value()) {
    checks.floating("bias", *bias);
    checks.shape("bias", *bias, {N});
    same_device(checks, "bias", *bias, packed);
    bias_values = torch::stable::contiguous(torch::stable::to(*bias, ScalarType::Float));
  }
  x = torch::stable::contiguous(x);
  int64_t rows = 1;
  std::vector<int64_t> size;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) {
    size.push_back(x.size(i));
    rows *= x.size(i);
  }
  size.push_back(N);
  void* stream = current_stream(x);
  Tensor y = torch::stable::new_empty(x, {size.data(), size.size()});
  Tensor values = torch::stable::new_empty(x, {rows, ceil_div(K, TILE_K) * TILE_K}, ScalarType::Float);
  Tensor row_scales = torch::stable::new_empty(x, {activation_bits ? rows : 0}, ScalarType::Float);
  float* floats = mutable_data<float>(values);
  float* of_rows = activation_bits ? mutable_data<float>(row_scales) : nullptr;
  const void* source = x.const_data_ptr();
  check_launch(checks, activation_bits ? cuda::code_rows(source, element(dtype), rows, K, floats, of_rows, stream)
                                       : cuda::float_rows(source, element(dtype), rows, K, floats, stream));
  const float* bias_data = bias.has_value() ? data<float>(bias_values) : nullptr;
  check_launch(checks, cuda::quant_linear(matrix, floats, rows, of_rows, bias_data, y.mutable_data_ptr(),
                                          element(dtype), stream));
  return y;
}

}  // namespace
}  // namespace torchcoinfer

TORCHCOINFER_CUDA_OPS(m) {
  m.impl("dequantize", TORCH_BOX(&torchcoinfer::dequantize_op));
  m.impl("quant_linear", TORCH_BOX(&torchcoinfer::quant_linear_op));
}
