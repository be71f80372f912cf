// Dense format: tensors to pointers, checks, threads, registration.

#include <atomic>

#include "cpu/isa.h"
#include "cpu/pack.h"
#include "cpu/tensor.h"

namespace torchcoinfer {
namespace {

constexpr int64_t BLOCK_GRAIN = 1;  // n-blocks a thread takes at least

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

// Checks the buffers of one packed matrix and gives their pointers; `blocks` receives the number of n-blocks.
QuantMatrix quant_matrix(const Checker& checks, const Tensor& packed, const Tensor& scales,
                         const std::optional<Tensor>& zeros, int64_t bits, int64_t group_size, int64_t N, int64_t K) {
  const int64_t blocks = check_packed(checks, packed, bits, N, K);
  checks.group_size(group_size);
  const int64_t groups = group_count(K, group_size);
  const Dtype scale_dtype = checks.floating("scales", scales);
  checks.shape("scales", scales, {blocks, groups, BLOCK_N});
  checks.contiguous("scales", scales);
  const bool asymmetric = zeros.has_value() && zeros->numel() > 0;
  if (asymmetric) {
    checks.dtype("zeros", *zeros, ScalarType::Byte);
    checks.shape("zeros", *zeros, {blocks, groups, BLOCK_N});
    checks.contiguous("zeros", *zeros);
  }
  return {data<uint8_t>(packed), scales.const_data_ptr(), asymmetric ? data<uint8_t>(*zeros) : nullptr,
          scale_dtype,           static_cast<int>(bits),  group_size,
          N,                     K};
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
  m.impl("dequantize", TORCH_BOX(&torchcoinfer::dequantize_op));
}

STABLE_TORCH_LIBRARY_IMPL(torchcoinfer, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&torchcoinfer::cpu_isa_op));
  m.impl("cpu_isas", TORCH_BOX(&torchcoinfer::cpu_isas_op));
}
