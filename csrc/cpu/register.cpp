// Dense format: tensors to pointers, checks, threads, registration.

#include <algorithm>
#include <atomic>

#include "cpu/decoded_linear.h"
#include "cpu/isa.h"
#include "cpu/pack.h"
#include "cpu/quant_conv2d.h"
#include "cpu/quant_embedding.h"
#include "epilogue.h"
#include "packed_arguments.h"

namespace torchcoinfer {
namespace {

constexpr int64_t BLOCK_GRAIN = 1;       // n-blocks a thread takes at least
constexpr int64_t EMBEDDING_GRAIN = 64;  // rows a thread decodes at least
constexpr int64_t ELEMENT_GRAIN = 1 << 15;  // elements of x that are worth a thread

Tensor pack_codes_op(Tensor codes, int64_t bits) {
  const Checker checks{"pack_codes"};
  checks.bits(bits);
  checks.dtype("codes", codes, ScalarType::Byte);
  check(codes.dim() == 2, checks.op, "codes", "2 dimensions [N, K]", shape_text(codes));
  codes = torch::stable::contiguous(codes);
  const int64_t N = codes.size(0), K = codes.size(1), blocks = ceil_div(N, BLOCK_N);
  const uint8_t* source = data<uint8_t>(codes);
  if (bits < 8) {
    uint8_t seen = 0;
    for (int64_t i = 0; i < N * K; ++i) seen |= source[i];
    check(seen >> bits == 0, checks.op, "codes", "values below 2^" + std::to_string(bits), "a larger value");
  }
  Tensor packed = empty_cpu({blocks, ceil_div(K, TILE_K), tile_bytes(static_cast<int>(bits))}, ScalarType::Byte);
  uint8_t* target = mutable_data<uint8_t>(packed);
  torch::stable::parallel_for(0, blocks, BLOCK_GRAIN, [&](int64_t begin, int64_t end) {
    pack_codes(source, static_cast<int>(bits), N, K, target, begin, end);
  });
  return packed;
}

// Checks `packed` against N, K, bits; returns the number of n-blocks.
int64_t check_packed(const Checker& checks, const Tensor& packed, int64_t bits, int64_t N, int64_t K) {
  checks.bits(bits);
  const int64_t blocks = ceil_div(N, BLOCK_N);
  checks.dtype("packed", packed, ScalarType::Byte);
  checks.shape("packed", packed, {blocks, ceil_div(K, TILE_K), tile_bytes(static_cast<int>(bits))});
  checks.contiguous("packed", packed);
  return blocks;
}

Tensor unpack_codes_op(Tensor packed, int64_t bits, int64_t N, int64_t K) {
  const Checker checks{"unpack_codes"};
  const int64_t blocks = check_packed(checks, packed, bits, N, K);
  Tensor codes = empty_cpu({N, K}, ScalarType::Byte);
  const uint8_t* source = data<uint8_t>(packed);
  uint8_t* target = mutable_data<uint8_t>(codes);
  torch::stable::parallel_for(0, blocks, BLOCK_GRAIN, [&](int64_t begin, int64_t end) {
    unpack_codes(source, static_cast<int>(bits), N, K, target, begin, end);
  });
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
  weight = torch::stable::contiguous(weight);
  const int64_t N = weight.size(0), K = weight.size(1), blocks = ceil_div(N, BLOCK_N);
  const int64_t groups = group_count(K, group_size);
  Tensor packed = zeros_cpu({blocks, ceil_div(K, TILE_K), tile_bytes(static_cast<int>(bits))}, ScalarType::Byte);
  Tensor scales = zeros_cpu({blocks, groups, BLOCK_N}, scale_dtype);
  Tensor zeros = symmetric ? zeros_cpu({0}, ScalarType::Byte) : zeros_cpu({blocks, groups, BLOCK_N}, ScalarType::Byte);
  const QuantOutput out{mutable_data<uint8_t>(packed), scales.mutable_data_ptr(),
                        symmetric ? nullptr : mutable_data<uint8_t>(zeros), scale_kind};
  const void* source = weight.const_data_ptr();
  std::atomic<bool> finite{true};
  torch::stable::parallel_for(0, blocks, BLOCK_GRAIN, [&](int64_t begin, int64_t end) {
    if (!quantize_blocks(source, dtype, static_cast<int>(bits), group_size, N, K, out, begin, end)) finite = false;
  });
  check(finite, checks.op, "weight", "finite values whose scales fit " + std::string(dtype_text(scale_dtype)),
        "NaN, Inf or a scale that overflows");
  return {packed, scales, zeros};
}

// Checks the buffers of one packed matrix and gives their pointers.
QuantMatrix quant_matrix(const Checker& checks, const Tensor& packed, const Tensor& scales,
                         const std::optional<Tensor>& zeros, int64_t bits, int64_t group_size, int64_t N, int64_t K) {
  check_packed(checks, packed, bits, N, K);
  const bool asymmetric = check_grid(checks, scales, zeros, group_size, N, K);
  return {data<uint8_t>(packed),
          scales.const_data_ptr(),
          asymmetric ? data<uint8_t>(*zeros) : nullptr,
          checks.floating("scales", scales),
          static_cast<int>(bits),
          group_size,
          N,
          K};
}

Tensor dequantize_op(Tensor packed, Tensor scales, std::optional<Tensor> zeros, int64_t bits, int64_t group_size,
                     int64_t N, int64_t K, ScalarType dtype) {
  const Checker checks{"dequantize"};
  const QuantMatrix matrix = quant_matrix(checks, packed, scales, zeros, bits, group_size, N, K);
  const Dtype kind = checks.floating("dtype", dtype);
  Tensor weight = empty_cpu({N, K}, dtype);
  void* target = weight.mutable_data_ptr();
  torch::stable::parallel_for(0, ceil_div(N, BLOCK_N), BLOCK_GRAIN, [&](int64_t begin, int64_t end) {
    dequantize_blocks(matrix, target, kind, begin, end);
  });
  return weight;
}

void check_variant(const Checker& checks, int64_t activation_bits, int64_t layout) {
  check(activation_bits == 0 || activation_bits == 8, checks.op, "activation_bits", "0 (weight-only) or 8",
        activation_bits);
  checks.layout(layout);
}

// x [rows, K] in units of the codes of its static scales [K].
Tensor static_rows(const Tensor& x, Dtype dtype, const Tensor& scales) {
  const int64_t K = x.size(-1), rows = K ? x.numel() / K : 0;
  Tensor out = empty_cpu({rows, K}, ScalarType::Float);
  const SourceRows source{x.const_data_ptr(), dtype, K, K};
  torch::stable::parallel_for(0, rows, ceil_div(ELEMENT_GRAIN, std::max<int64_t>(K, 1)), [&](int64_t begin, int64_t end) {
    scale_columns(source, data<float>(scales), begin, end, mutable_data<float>(out));
  });
  return out;
}

Tensor quant_linear_op(Tensor x, Tensor packed, Tensor scales, std::optional<Tensor> zeros, std::optional<Tensor> bias,
                       int64_t bits, int64_t group_size, int64_t out_features, int64_t activation_bits,
                       int64_t layout, std::optional<Tensor> x_scales, std::string activation) {
  const Checker checks{"quant_linear"};
  check_activation(checks.op, activation);
  check(x.dim() >= 1, checks.op, "x", "at least 1 dimension [..., K]", shape_text(x));
  check_variant(checks, activation_bits, layout);
  const Dtype dtype = checks.floating("x", x);
  const int64_t N = out_features, K = x.size(-1);
  const QuantMatrix matrix = quant_matrix(checks, packed, scales, zeros, bits, group_size, N, K);
  const std::vector<float> bias_values = checks.bias(bias, N);
  x = torch::stable::contiguous(x);
  if (x_scales.has_value()) checks.static_scales(*x_scales, K, activation_bits);
  const auto [rows, size] = RowsOf(x, N);
#if TORCHCOINFER_X86
  if (is_decoded(active_isa(), dtype, rows, activation_bits, Stored::codes, N, K))
    return activated(*decoded_linear(x, N, bias,
                                     [&](int64_t begin, int64_t end, uint16_t* of_rows) {
                                       decode_rows(matrix, begin, end, of_rows);
                                       return true;
                                     }),
                     activation);
#endif
  Tensor y = empty_cpu(size, x.scalar_type());
  const Output out{y.mutable_data_ptr(), dtype, N, 1, 0, N, bias_values.empty() ? nullptr : bias_values.data()};
  std::optional<Tensor> in_codes;
  if (x_scales.has_value()) in_codes = static_rows(x, dtype, *x_scales);
  const SourceRows source = in_codes.has_value() ? SourceRows{in_codes->const_data_ptr(), Dtype::float32, K, K, true}
                                                 : SourceRows{x.const_data_ptr(), dtype, K, K};
  run_linear({matrix, source, rows, static_cast<int>(activation_bits), out, active_isa()}, on_torch_threads);
  return activated(y, activation);
}

int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// The four two-element arguments of a convolution, checked.
void check_pair(const Checker& checks, const char* argument, const std::vector<int64_t>& pair, int64_t least) {
  check(pair.size() == 2, checks.op, argument, "2 integers", pair.size());
  for (int64_t value : pair)
    check(value >= least && value <= INT32_MAX, checks.op, argument,
          std::to_string(least) + " to " + std::to_string(INT32_MAX), value);
}

ConvShape conv_shape(const Checker& checks, const Tensor& x, int64_t out_channels, const std::vector<int64_t>& kernel,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation, int64_t groups) {
  check(x.dim() == 4, checks.op, "x", "4 dimensions [B, C, H, W]", shape_text(x));
  check_pair(checks, "kernel_size", kernel, 1);
  check_pair(checks, "stride", stride, 1);
  check_pair(checks, "padding", padding, 0);
  check_pair(checks, "dilation", dilation, 1);
  checks.positive("groups", groups);
  check(x.size(1) % groups == 0, checks.op, "x", "channels divisible by " + std::to_string(groups), x.size(1));
  check(out_channels % groups == 0, checks.op, "out_channels", "divisible by " + std::to_string(groups), out_channels);
  ConvShape s{};
  s.batch = x.size(0), s.channels = x.size(1), s.height = x.size(2), s.width = x.size(3);
  s.out_channels = out_channels, s.groups = groups;
  s.out_height = out_size(s.height, kernel[0], stride[0], padding[0], dilation[0]);
  s.out_width = out_size(s.width, kernel[1], stride[1], padding[1], dilation[1]);
  for (int i = 0; i < 2; ++i)
    s.kernel[i] = kernel[i], s.padding[i] = padding[i], s.dilation[i] = dilation[i];
  // one output needs no stride: room for patches is made by it
  s.stride[0] = s.out_height > 1 ? stride[0] : 1, s.stride[1] = s.out_width > 1 ? stride[1] : 1;
  check(s.out_height > 0 && s.out_width > 0, checks.op, "x", "an image at least as large as the kernel",
        shape_text(x));
  return s;
}

Tensor quant_conv2d_op(Tensor x, Tensor packed, Tensor scales, std::optional<Tensor> zeros, std::optional<Tensor> bias,
                       int64_t bits, int64_t group_size, int64_t out_channels, std::vector<int64_t> kernel_size,
                       std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                       int64_t groups, int64_t activation_bits, int64_t layout, std::string activation) {
  const Checker checks{"quant_conv2d"};
  check_activation(checks.op, activation);
  check_variant(checks, activation_bits, layout);
  const Dtype dtype = checks.floating("x", x);
  const ConvShape shape = conv_shape(checks, x, out_channels, kernel_size, stride, padding, dilation, groups);
  const QuantMatrix matrix =
      quant_matrix(checks, packed, scales, zeros, bits, group_size, out_channels, shape.columns());
  const std::vector<float> bias_values = checks.bias(bias, out_channels);
  Tensor y = empty_cpu({shape.batch, out_channels, shape.out_height, shape.out_width}, x.scalar_type());
  run_conv2d({matrix,
              shape,
              x.const_data_ptr(),
              {x.stride(0), x.stride(1), x.stride(2), x.stride(3)},
              dtype,
              static_cast<int>(activation_bits),
              y.mutable_data_ptr(),
              bias_values.empty() ? nullptr : bias_values.data(),
              active_isa()},
             on_torch_threads);
  return activated(y, activation);
}

template <typename Index>
void embed(const Checker& checks, const QuantMatrix& table, const Tensor& indices, void* out, Dtype dtype) {
  const Index* values = data<Index>(indices);
  const int64_t count = indices.numel();
  for (int64_t i = 0; i < count; ++i)
    check(values[i] >= 0 && values[i] < table.N, checks.op, "indices", "0 <= index < " + std::to_string(table.N),
          values[i]);
  torch::stable::parallel_for(0, count, EMBEDDING_GRAIN, [&](int64_t begin, int64_t end) {
    embed_rows(table, values, out, dtype, begin, end);
  });
}

Tensor quant_embedding_op(Tensor indices, Tensor packed, Tensor scales, std::optional<Tensor> zeros, int64_t bits,
                          int64_t group_size, int64_t num_embeddings, int64_t embedding_dim, ScalarType dtype) {
  const Checker checks{"quant_embedding"};
  const Dtype kind = checks.floating("dtype", dtype);
  const QuantMatrix table =
      quant_matrix(checks, packed, scales, zeros, bits, group_size, num_embeddings, embedding_dim);
  const ScalarType index_type = indices.scalar_type();
  check(index_type == ScalarType::Long || index_type == ScalarType::Int, checks.op, "indices", "int64 or int32",
        dtype_text(index_type));
  indices = torch::stable::contiguous(indices);
  std::vector<int64_t> size;
  for (int64_t i = 0; i < indices.dim(); ++i) size.push_back(indices.size(i));
  size.push_back(embedding_dim);
  Tensor rows = empty_cpu(size, dtype);
  if (index_type == ScalarType::Long)
    embed<int64_t>(checks, table, indices, rows.mutable_data_ptr(), kind);
  else
    embed<int32_t>(checks, table, indices, rows.mutable_data_ptr(), kind);
  return rows;
}

std::string cpu_isa_op() {
  return isa_name(active_isa());
}

std::string cpu_isas_op() {
  return available_isas();
}

}  // namespace
}  // namespace torchcoinfer

STABLE_TORCH_LIBRARY_IMPL(torchcoinfer, CPU, m) {
  m.impl("pack_codes", TORCH_BOX(&torchcoinfer::pack_codes_op));
  m.impl("unpack_codes", TORCH_BOX(&torchcoinfer::unpack_codes_op));
  m.impl("quantize_pack", TORCH_BOX(&torchcoinfer::quantize_pack_op));
  m.impl("quant_linear", TORCH_BOX(&torchcoinfer::quant_linear_op));
  m.impl("quant_conv2d", TORCH_BOX(&torchcoinfer::quant_conv2d_op));
  m.impl("quant_embedding", TORCH_BOX(&torchcoinfer::quant_embedding_op));
  m.impl("dequantize", TORCH_BOX(&torchcoinfer::dequantize_op));
}

STABLE_TORCH_LIBRARY_IMPL(torchcoinfer, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&torchcoinfer::cpu_isa_op));
  m.impl("cpu_isas", TORCH_BOX(&torchcoinfer::cpu_isas_op));
}
