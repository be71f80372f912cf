// The arguments of packed and sparse matrices, checked alike for every backend. For the register*.cpp files only.

#pragma once

#include <optional>
#include <string>

#include "cpu/tensor.h"
#include "layout_sparse.h"

namespace torchcoinfer {

// Scales and zero points [NB, G, 16] of codes; whether there are zero points.
inline bool check_grid(const Checker& checks, const Tensor& scales, const std::optional<Tensor>& zeros,
                       int64_t group_size, int64_t N, int64_t K) {
  checks.group_size(group_size);
  const int64_t blocks = ceil_div(N, BLOCK_N), groups = group_count(K, group_size);
  checks.floating("scales", scales);
  checks.shape("scales", scales, {blocks, groups, BLOCK_N});
  checks.contiguous("scales", scales);
  if (!zeros.has_value() || zeros->numel() == 0) return false;
  checks.dtype("zeros", *zeros, ScalarType::Byte);
  checks.shape("zeros", *zeros, {blocks, groups, BLOCK_N});
  checks.contiguous("zeros", *zeros);
  return true;
}

// The same for survivors, which may be floats and then have none; whether the scales are there.
inline bool check_survivor_grid(const Checker& checks, int64_t bits, const std::optional<Tensor>& scales,
                                const std::optional<Tensor>& zeros, int64_t group_size) {
  if (bits) {
    check(scales.has_value(), checks.op, "scales", "the scales of the codes", "None");
    return true;
  }
  check(group_size == 0, checks.op, "group_size", "0 for float survivors", group_size);
  check(!scales.has_value() && !zeros.has_value(), checks.op, "scales", "none for float survivors", "a tensor");
  return false;
}

inline void check_survivor_bits(const Checker& checks, int64_t bits) {
  check(bits == 0 || is_valid_bits(bits), checks.op, "bits", "0 (float survivors), 2, 3, 4, 5, 6 or 8", bits);
}

inline void check_survivor_activation(const Checker& checks, int64_t activation_bits, int64_t bits) {
  const bool known = activation_bits == 0 || (activation_bits == 8 && bits);
  check(known, checks.op, "activation_bits", "0 (weight-only), or 8 with quantized survivors", activation_bits);
}

// Bytes of one of the values: floats, or unpacked or packed codes.
inline int64_t survivor_bytes(const Checker& checks, const Tensor& values, int64_t bits) {
  if (bits == 0) return dtype_bytes(checks.floating("values", values));
  checks.dtype("values", values, ScalarType::Byte);
  return 1;
}

// Elements of the values that hold 64 survivors.
inline int64_t chunk_elements(int64_t bits) {
  return bits ? chunk_bytes(static_cast<int>(bits)) : CHUNK;
}

// What both pack ops take.
struct DenseSurvivors {
  Tensor values, mask;
  int64_t N, K, blocks, tiles, value_bytes;
  int bits;
};

inline DenseSurvivors dense_survivors(const Checker& checks, const Tensor& values, const Tensor& mask, int64_t bits) {
  check_survivor_bits(checks, bits);
  check(values.dim() == 2, checks.op, "values", "2 dimensions [N, K]", shape_text(values));
  checks.dtype("mask", mask, ScalarType::Bool);
  const int64_t N = values.size(0), K = values.size(1);
  checks.shape("mask", mask, {N, K});
  return {torch::stable::contiguous(values), torch::stable::contiguous(mask), N, K, ceil_div(N, BLOCK_N),
          ceil_div(K, TILE_K), survivor_bytes(checks, values, bits), static_cast<int>(bits)};
}

// The dtype of a matrix' float survivors; float32, unused, for codes.
inline Dtype survivor_dtype(const Checker& checks, const Tensor& values, int64_t bits) {
  return bits ? Dtype::float32 : checks.floating("values", values);
}

// A matrix of either backend in 2:4, without scales and value type.
template <typename Matrix>
Matrix sparse24_buffers(const Checker& checks, const Tensor& index, const Tensor& values, int64_t bits, int64_t N,
                        int64_t K) {
  check_survivor_bits(checks, bits);
  const int64_t blocks = ceil_div(N, BLOCK_N), tiles = ceil_div(K, TILE_K);
  checks.dtype("index", index, ScalarType::Byte);
  checks.shape("index", index, {blocks, tiles, INDEX_BYTES});
  checks.contiguous("index", index);
  survivor_bytes(checks, values, bits);
  checks.shape("values", values, {blocks, tiles, TILE_CHUNKS * chunk_elements(bits)});
  checks.contiguous("values", values);
  Matrix matrix{};
  matrix.paired = true;
  matrix.index = data<uint8_t>(index);
  matrix.values = values.const_data_ptr();
  matrix.chunks = blocks * tiles * TILE_CHUNKS;
  matrix.bits = static_cast<int>(bits), matrix.N = N, matrix.K = K;
  return matrix;
}

// The same in the bitmap format; the caller checks how many values there are.
template <typename Matrix>
Matrix bitmap_buffers(const Checker& checks, const Tensor& mask, const Tensor& offsets, const Tensor& values,
                      int64_t bits, int64_t N, int64_t K) {
  check_survivor_bits(checks, bits);
  const int64_t blocks = ceil_div(N, BLOCK_N);
  checks.dtype("mask", mask, ScalarType::Long);
  checks.shape("mask", mask, {blocks, ceil_div(K, TILE_K), TILE_GROUPS});
  checks.contiguous("mask", mask);
  checks.dtype("offsets", offsets, ScalarType::Int);
  checks.shape("offsets", offsets, {blocks + 1});
  checks.contiguous("offsets", offsets);
  survivor_bytes(checks, values, bits);
  checks.contiguous("values", values);
  Matrix matrix{};
  matrix.masks = reinterpret_cast<const uint64_t*>(data<int64_t>(mask));
  matrix.offsets = data<int32_t>(offsets);
  matrix.values = values.const_data_ptr();
  matrix.bits = static_cast<int>(bits), matrix.N = N, matrix.K = K;
  return matrix;
}

// K of x [..., K].
inline int64_t columns_of(const Checker& checks, const Tensor& x) {
  check(x.dim() >= 1, checks.op, "x", "at least 1 dimension [..., K]", shape_text(x));
  return x.size(-1);
}

}  // namespace torchcoinfer
