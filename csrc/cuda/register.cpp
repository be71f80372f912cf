// Dense format: tensors to pointers, checks, the current stream, registration. On the CUDA side only the register*.cpp
// files see torch headers.

#include "cuda/arguments.h"
#include "cuda/conv_paths.h"
#include "epilogue.h"

namespace torchcoinfer {
namespace {

void check_packed(const Checker& checks, const Tensor& packed, int64_t bits, int64_t N, int64_t K) {
  checks.bits(bits);
  checks.dtype("packed", packed, ScalarType::Byte);
  checks.shape("packed", packed, {ceil_div(N, BLOCK_N), ceil_div(K, TILE_K), tile_bytes(static_cast<int>(bits))});
  checks.contiguous("packed", packed);
}

cuda::DenseMatrix dense_matrix(const Checker& checks, const Tensor& packed, const Tensor& scales,
                               const std::optional<Tensor>& zeros, int64_t bits, int64_t group_size, int64_t N,
                               int64_t K, int64_t layout = CANONICAL_LAYOUT) {
  check_packed(checks, packed, bits, N, K);
  check_layout(checks, layout);
  cuda::DenseMatrix matrix{};
  matrix.packed = data<uint8_t>(packed);
  matrix.bits = static_cast<int>(bits);
  matrix.N = N;
  matrix.K = K;
  matrix.layout = static_cast<int>(layout);
  set_grid(checks, scales, zeros, group_size, packed, &matrix);
  return matrix;
}

Tensor pack_codes_op(Tensor codes, int64_t bits) {
  const Checker checks{"pack_codes"};
  checks.bits(bits);
  checks.dtype("codes", codes, ScalarType::Byte);
  check(codes.dim() == 2, checks.op, "codes", "2 dimensions [N, K]", shape_text(codes));
  const DeviceGuard guard(codes.get_device_index());
  codes = torch::stable::contiguous(codes);
  const int64_t N = codes.size(0), K = codes.size(1);
  const int width = static_cast<int>(bits);
  Tensor packed = empty_beside(codes, {ceil_div(N, BLOCK_N), ceil_div(K, TILE_K), tile_bytes(width)}, ScalarType::Byte);
  const Flag flag(codes);
  check_launch(checks, cuda::pack_codes(data<uint8_t>(codes), width, N, K, mutable_data<uint8_t>(packed), flag.place(),
                                        current_stream(codes)));
  check(!flag.raised(checks), checks.op, "codes", "values below 2^" + std::to_string(bits), "a larger value");
  return packed;
}

Tensor unpack_codes_op(Tensor packed, int64_t bits, int64_t N, int64_t K) {
  const Checker checks{"unpack_codes"};
  check_packed(checks, packed, bits, N, K);
  const DeviceGuard guard(packed.get_device_index());
  Tensor codes = empty_beside(packed, {N, K}, ScalarType::Byte);
  check_launch(checks, cuda::unpack_codes(data<uint8_t>(packed), static_cast<int>(bits), N, K,
                                          mutable_data<uint8_t>(codes), current_stream(packed)));
  return codes;
}

std::tuple<Tensor, Tensor, Tensor> quantize_pack_op(Tensor weight, int64_t bits, int64_t group_size, bool symmetric,
                                                    ScalarType scale_dtype) {
  const Checker checks{"quantize_pack"};
  checks.bits(bits);
  checks.group_size(group_size);
  const Dtype dtype = checks.floating("weight", weight);
  const Dtype scale_kind = checks.floating("scale_dtype", scale_dtype);
  check(weight.dim() == 2, checks.op, "weight", "2 dimensions [N, K]", shape_text(weight));
  const DeviceGuard guard(weight.get_device_index());
  weight = torch::stable::contiguous(weight);
  const int64_t N = weight.size(0), K = weight.size(1), blocks = ceil_div(N, BLOCK_N);
  const int64_t groups = group_count(K, group_size);
  const int width = static_cast<int>(bits);
  Tensor packed = empty_beside(weight, {blocks, ceil_div(K, TILE_K), tile_bytes(width)}, ScalarType::Byte);
  Tensor scales = empty_beside(weight, {blocks, groups, BLOCK_N}, scale_dtype);
  Tensor zeros = symmetric ? empty_beside(weight, {0}, ScalarType::Byte)
                           : empty_beside(weight, {blocks, groups, BLOCK_N}, ScalarType::Byte);
  const Flag flag(weight);
  check_launch(checks, cuda::quantize_pack(weight.const_data_ptr(), element(dtype), width, group_size, N, K,
                                           mutable_data<uint8_t>(packed), scales.mutable_data_ptr(),
                                           symmetric ? nullptr : mutable_data<uint8_t>(zeros), element(scale_kind),
                                           flag.place(), current_stream(weight)));
  check(!flag.raised(checks), checks.op, "weight",
        "finite values whose scales fit " + std::string(dtype_text(scale_dtype)), "NaN, Inf or a scale that overflows");
  return {packed, scales, zeros};
}

Tensor dequantize_op(Tensor packed, Tensor scales, std::optional<Tensor> zeros, int64_t bits, int64_t group_size,
                     int64_t N, int64_t K, ScalarType dtype) {
  const Checker checks{"dequantize"};
  const cuda::DenseMatrix matrix = dense_matrix(checks, packed, scales, zeros, bits, group_size, N, K);
  const Dtype kind = checks.floating("dtype", dtype);
  const DeviceGuard guard(packed.get_device_index());
  Tensor weight = empty_beside(packed, {N, K}, dtype);
  check_launch(checks, cuda::dequantize(matrix, weight.mutable_data_ptr(), element(kind), current_stream(packed)));
  return weight;
}

// x in int8 codes by static scales [K], in its own dtype, which holds them exactly.
Tensor static_rows(const Checker& checks, const Tensor& x, const Tensor& scales) {
  const int64_t K = x.size(-1);
  same_device(checks, "x_scales", scales, x);
  const Tensor whole = torch::stable::contiguous(x);
  std::vector<int64_t> size;
  for (int64_t i = 0; i < x.dim(); ++i) size.push_back(x.size(i));
  Tensor codes = empty_beside(x, size, x.scalar_type());
  check_launch(checks, cuda::static_codes(whole.const_data_ptr(), element(checks.floating("x", x)),
                                          K ? x.numel() / K : 0, K, data<float>(scales), codes.mutable_data_ptr(),
                                          current_stream(x)));
  return codes;
}

Tensor quant_linear_op(Tensor x, Tensor packed, Tensor scales, std::optional<Tensor> zeros, std::optional<Tensor> bias,
                       int64_t bits, int64_t group_size, int64_t out_features, int64_t activation_bits,
                       int64_t layout, std::optional<Tensor> x_scales, std::string activation) {
  const Checker checks{"quant_linear"};
  check_activation(checks.op, activation);
  check_activation_bits(checks, activation_bits);
  check(x.dim() >= 1, checks.op, "x", "at least 1 dimension [..., K]", shape_text(x));
  same_device(checks, "x", x, packed);
  const cuda::DenseMatrix matrix =
      dense_matrix(checks, packed, scales, zeros, bits, group_size, out_features, x.size(-1), layout);
  const DeviceGuard guard(x.get_device_index());
  if (x_scales.has_value()) {
    checks.static_scales(*x_scales, x.size(-1), activation_bits);
    x = static_rows(checks, x, *x_scales);
    activation_bits = 0;  // the weight-only kernels multiply codes exactly
  }
  const std::optional<Tensor> fast = fast_linear(checks, matrix, x, bias, activation_bits);
  if (fast.has_value()) return activated(*fast, activation);
  const Tensor of_bias = bias_values(checks, bias, out_features, packed);
  const LinearRows rows = linear_rows(checks, x, out_features, activation_bits);
  check_launch(checks, cuda::quant_linear(matrix, data<float>(rows.values), rows.rows, rows.row_scales(),
                                          bias_data(of_bias), rows.y.mutable_data_ptr(), element(rows.dtype),
                                          current_stream(x)));
  return activated(rows.y, activation);
}

int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// A two-element argument of a convolution, checked, into `pair`.
void set_pair(const Checker& checks, const char* argument, const std::vector<int64_t>& values, int64_t least,
              int64_t* pair) {
  check(values.size() == 2, checks.op, argument, "2 integers", values.size());
  for (int i = 0; i < 2; ++i) {
    check(values[i] >= least && values[i] <= INT32_MAX, checks.op, argument,
          std::to_string(least) + " to " + std::to_string(INT32_MAX), values[i]);
    pair[i] = values[i];
  }
}

Tensor quant_conv2d_op(Tensor x, Tensor packed, Tensor scales, std::optional<Tensor> zeros, std::optional<Tensor> bias,
                       int64_t bits, int64_t group_size, int64_t out_channels, std::vector<int64_t> kernel_size,
                       std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                       int64_t groups, int64_t activation_bits, int64_t layout, std::string activation) {
  const Checker checks{"quant_conv2d"};
  check_activation(checks.op, activation);
  check_activation_bits(checks, activation_bits);
  const Dtype dtype = checks.floating("x", x);
  same_device(checks, "x", x, packed);
  check(x.dim() == 4, checks.op, "x", "4 dimensions [B, C, H, W]", shape_text(x));
  cuda::ConvShape s{};
  set_pair(checks, "kernel_size", kernel_size, 1, s.kernel);
  set_pair(checks, "stride", stride, 1, s.stride);
  set_pair(checks, "padding", padding, 0, s.padding);
  set_pair(checks, "dilation", dilation, 1, s.dilation);
  checks.positive("groups", groups);
  check(x.size(1) % groups == 0, checks.op, "x", "channels divisible by " + std::to_string(groups), x.size(1));
  check(out_channels % groups == 0, checks.op, "out_channels", "divisible by " + std::to_string(groups), out_channels);
  s.batch = x.size(0), s.channels = x.size(1), s.height = x.size(2), s.width = x.size(3);
  s.out_channels = out_channels, s.groups = groups;
  s.out_height = out_size(s.height, s.kernel[0], s.stride[0], s.padding[0], s.dilation[0]);
  s.out_width = out_size(s.width, s.kernel[1], s.stride[1], s.padding[1], s.dilation[1]);
  check(s.out_height > 0 && s.out_width > 0, checks.op, "x", "an image at least as large as the kernel",
        shape_text(x));
  for (int i = 0; i < 4; ++i) s.x_strides[i] = x.stride(i);
  const int64_t columns = s.channels / groups * s.kernel[0] * s.kernel[1];
  const cuda::DenseMatrix matrix =
      dense_matrix(checks, packed, scales, zeros, bits, group_size, out_channels, columns, layout);
  const DeviceGuard guard(x.get_device_index());
  const std::optional<Tensor> fast = fast_conv2d(checks, matrix, s, x, bias, activation_bits);
  if (fast.has_value()) return activated(*fast, activation);
  const Tensor of_bias = bias_values(checks, bias, out_channels, packed);
  Tensor y = empty_beside(x, {s.batch, out_channels, s.out_height, s.out_width}, x.scalar_type());
  const int64_t patches = activation_bits ? s.batch * s.out_height * s.out_width * groups : 0;
  const Tensor maxima = empty_beside(x, {patches}, ScalarType::Float);
  check_launch(checks, cuda::quant_conv2d(matrix, s, x.const_data_ptr(),
                                          patches ? mutable_data<float>(maxima) : nullptr, bias_data(of_bias),
                                          y.mutable_data_ptr(), element(dtype), current_stream(x)));
  return activated(y, activation);
}

Tensor quant_embedding_op(Tensor indices, Tensor packed, Tensor scales, std::optional<Tensor> zeros, int64_t bits,
                          int64_t group_size, int64_t num_embeddings, int64_t embedding_dim, ScalarType dtype) {
  const Checker checks{"quant_embedding"};
  const Dtype kind = checks.floating("dtype", dtype);
  const cuda::DenseMatrix table =
      dense_matrix(checks, packed, scales, zeros, bits, group_size, num_embeddings, embedding_dim);
  same_device(checks, "indices", indices, packed);
  const ScalarType type = indices.scalar_type();
  check(type == ScalarType::Long || type == ScalarType::Int, checks.op, "indices", "int64 or int32", dtype_text(type));
  const DeviceGuard guard(packed.get_device_index());
  indices = torch::stable::contiguous(indices);
  std::vector<int64_t> size;
  for (int64_t i = 0; i < indices.dim(); ++i) size.push_back(indices.size(i));
  size.push_back(embedding_dim);
  Tensor rows = empty_beside(packed, size, dtype);
  check_launch(checks, cuda::embed(table, indices.const_data_ptr(), type == ScalarType::Long, indices.numel(),
                                   rows.mutable_data_ptr(), element(kind), current_stream(packed)));
  return rows;
}

}  // namespace
}  // namespace torchcoinfer

TORCHCOINFER_CUDA_OPS(m) {
  m.impl("pack_codes", TORCH_BOX(&torchcoinfer::pack_codes_op));
  m.impl("unpack_codes", TORCH_BOX(&torchcoinfer::unpack_codes_op));
  m.impl("quantize_pack", TORCH_BOX(&torchcoinfer::quantize_pack_op));
  m.impl("dequantize", TORCH_BOX(&torchcoinfer::dequantize_op));
  m.impl("quant_linear", TORCH_BOX(&torchcoinfer::quant_linear_op));
  m.impl("quant_conv2d", TORCH_BOX(&torchcoinfer::quant_conv2d_op));
  m.impl("quant_embedding", TORCH_BOX(&torchcoinfer::quant_embedding_op));
}
