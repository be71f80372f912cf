// Which kernel runs a sparse linear layer, and why: the one place that decides. Whatever has no fast kernel takes the
// plain one for few rows and the decoded weight for many.

#pragma once

#include "cuda/dense_paths.h"

namespace torchcoinfer {

enum class SparsePath { plain, two_of_four, bitmap, decoded, bytes };

// From here on decoding and cuBLAS are the safer choice. Reckoned for an H100, not measured yet: decoding 4096 x 4096
// takes about 14 us, cuBLAS 98 us at 2048 rows, and mma.sp from registers is no faster than its wgmma by more than that.
constexpr int64_t DECODE_24_ROWS = 2048;
// Every n-block reads all of x through L2: beyond this that takes longer than decoding.
constexpr int64_t BITMAP_ROWS = 64;
// Few rows are memory-bound even in the plain kernel.
constexpr int64_t PLAIN_ROWS = 16;

inline SparsePath sparse_path(const cuda::SparseMatrix& w, cuda::Element x, int64_t rows, int64_t activation_bits) {
  if (rows == 0 || w.N == 0 || w.K == 0) return SparsePath::plain;  // nothing to multiply
  if (activation_bits) {
    // Few rows, bound by memory or instructions: the 16-bit kernels. Codes of both are exact there, and so are their
    // sums in float32 over a quad's group of 2:4 (64 products) or a tile of bitmap: 2.1 million at most. mma.sp of bytes
    // would gain nothing; its natural size, 64 columns, spans two groups of 32, whose sums must stay apart.
    if (rows <= cuda::SPARSE24_CODE_ROWS && cuda::sparse24_serves(w, x, rows)) return SparsePath::two_of_four;
    if (cuda::bitmap_serves(w, x) && rows <= BITMAP_ROWS) return SparsePath::bitmap;
    // The rest is dense work: codes become dense ones of 8 bits, exactly, for the int8 kernel. Reckoned for 4096 x 4096:
    // 6 us to write them, 6 to read them, about 5 % more than a dense layer at 4096 rows; twice a dense layer at 17 rows
    // of 2:4, and mma.sp of bytes would be up to twice as fast at thousands of rows. There is none.
    if (cuda::expand_serves(w)) return SparsePath::bytes;
    return w.paired && rows > PLAIN_ROWS ? SparsePath::bytes : SparsePath::plain;
  }
  if (rows < DECODE_24_ROWS && cuda::sparse24_serves(w, x, rows)) return SparsePath::two_of_four;
  if (cuda::bitmap_serves(w, x) && rows <= BITMAP_ROWS) return SparsePath::bitmap;
  return rows <= PLAIN_ROWS ? SparsePath::plain : SparsePath::decoded;
}

// x [rows, K] times the decoded weight, by torch.
inline Tensor decoded_sparse_linear(const Checker& checks, const cuda::SparseMatrix& w, const Tensor& x,
                                    cuda::Element type, const std::optional<Tensor>& bias) {
  Tensor weight = empty_beside(x, {w.N, w.K}, x.scalar_type());
  const auto decode = cuda::bitmap_serves(w, type) ? cuda::bitmap_dequantize : cuda::sparse_dequantize;
  check_launch(checks, decode(w, weight.mutable_data_ptr(), type, current_stream(x)));
  std::optional<Tensor> beside;
  if (bias.has_value()) beside = torch::stable::to(*bias, x.scalar_type());
  return torch_linear(x, weight, beside);
}

// x [rows, K] rounded to int8 codes times the weight's codes, expanded to dense ones of 8 bits: exact sums.
inline void expanded_linear(const Checker& checks, const cuda::SparseMatrix& w, const Tensor& x, Dtype dtype,
                            int64_t rows, const Tensor& bias, Tensor& y) {
  const int64_t blocks = ceil_div(w.N, BLOCK_N), tiles = ceil_div(w.K, TILE_K);
  const Tensor codes = empty_beside(x, {blocks, tiles, tile_bytes(8)}, ScalarType::Byte);
  check_launch(checks, cuda::expand_codes(w, mutable_data<uint8_t>(codes), current_stream(x)));
  const cuda::DenseMatrix dense{data<uint8_t>(codes), w.scales, w.zeros, w.scale_type, 8, w.group_size, w.N, w.K,
                                DEVICE_LAYOUT};
  byte_linear(checks, dense, x, dtype, rows, bias, y);
}

// Rows of x as the fast kernels read them, [rows, K rounded up to 8] in x's dtype: the values, or int8 codes and their
// scales.
struct SparseRows {
  Tensor values, scales;

  SparseRows(const Checker& checks, const Tensor& x, int64_t rows, int64_t K, int64_t activation_bits)
      : values(x), scales(empty_beside(x, {activation_bits ? rows : 0}, ScalarType::Float)) {
    const Dtype dtype = checks.floating("x", x);
    if (!activation_bits) {
      values = aligned_rows(checks, x, dtype, rows, K);
      return;
    }
    const int64_t columns = ceil_div(K, 8) * 8;
    values = empty_beside(x, {rows, columns}, x.scalar_type());
    check_launch(checks, cuda::code_rows(x.const_data_ptr(), element(dtype), rows, K, columns,
                                         values.mutable_data_ptr(), element(dtype), mutable_data<float>(scales),
                                         current_stream(x)));
  }
  const float* row_scales() const {
    return scales.numel() ? data<float>(scales) : nullptr;
  }
};

// The layer by a fast path; nothing where only the plain kernel serves it.
inline std::optional<Tensor> fast_sparse_linear(const Checker& checks, const cuda::SparseMatrix& w, const Tensor& x,
                                                const std::optional<Tensor>& bias, int64_t activation_bits) {
  const Dtype dtype = checks.floating("x", x);
  const cuda::Element type = element(dtype);
  const auto [rows, size] = RowsOf(x, w.N);
  const SparsePath path = sparse_path(w, type, rows, activation_bits);
  if (path == SparsePath::plain) return std::nullopt;
  const Tensor of_bias = bias_values(checks, bias, w.N, x);
  const Tensor whole = torch::stable::contiguous(x);
  if (path == SparsePath::decoded) return decoded_sparse_linear(checks, w, whole, type, bias);
  Tensor y = empty_beside(x, size, x.scalar_type());
  if (path == SparsePath::bytes) {
    expanded_linear(checks, w, whole, dtype, rows, of_bias, y);
    return y;
  }
  void* stream = current_stream(x);
  const SparseRows of_x(checks, whole, rows, w.K, activation_bits);
  const int64_t columns = of_x.values.numel() / rows;
  if (path == SparsePath::bitmap) {
    check_launch(checks, cuda::fast_bitmap(w, of_x.values.const_data_ptr(), columns, rows, of_x.row_scales(),
                                           bias_data(of_bias), y.mutable_data_ptr(), type, stream));
    return y;
  }
  const Tensor scratch = empty_beside(x, {cuda::sparse24_scratch(w, rows)}, ScalarType::Float);
  check_launch(checks, cuda::fast_sparse24(w, of_x.values.const_data_ptr(), columns, rows, of_x.row_scales(),
                                           bias_data(of_bias), y.mutable_data_ptr(), type, mutable_data<float>(scratch),
                                           stream));
  return y;
}

}  // namespace torchcoinfer
