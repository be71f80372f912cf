// Which kernel runs a sparse linear layer, and why: the one place that decides. Whatever has no fast kernel takes the
// plain one for few rows and the decoded weight for many.

#pragma once

#include "cuda/dense_paths.h"

namespace torchcoinfer {

enum class SparsePath { plain, two_of_four, bitmap, decoded };

// From here on decoding and cuBLAS are the safer choice. Reckoned for an H100, not measured yet: decoding 4096 x 4096
// takes about 14 us, cuBLAS 98 us at 2048 rows, and mma.sp from registers is no faster than its wgmma by more than that.
constexpr int64_t DECODE_24_ROWS = 2048;
// Every n-block reads all of x through L2: beyond this that takes longer than decoding.
constexpr int64_t BITMAP_ROWS = 64;
// Few rows are memory-bound even in the plain kernel.
constexpr int64_t PLAIN_ROWS = 16;

inline SparsePath sparse_path(const cuda::SparseMatrix& w, cuda::Element x, int64_t rows, int64_t activation_bits) {
  if (rows == 0 || w.N == 0 || w.K == 0) return SparsePath::plain;  // nothing to multiply
  if (activation_bits) return SparsePath::plain;
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

// The layer by a fast path; nothing where only the plain kernel serves it.
inline std::optional<Tensor> fast_sparse_linear(const Checker& checks, const cuda::SparseMatrix& w, const Tensor& x,
                                                const std::optional<Tensor>& bias, int64_t activation_bits) {
  const cuda::Element type = element(checks.floating("x", x));
  const auto [rows, size] = RowsOf(x, w.N);
  const SparsePath path = sparse_path(w, type, rows, activation_bits);
  if (path == SparsePath::plain) return std::nullopt;
  const Tensor of_bias = bias_values(checks, bias, w.N, x);
  const Tensor values = torch::stable::contiguous(x);
  if (path == SparsePath::decoded) return decoded_sparse_linear(checks, w, values, type, bias);
  Tensor y = empty_beside(x, size, x.scalar_type());
  void* stream = current_stream(x);
  const Tensor padded = aligned_rows(checks, values, checks.floating("x", x), rows, w.K);
  const int64_t columns = padded.numel() / rows;
  if (path == SparsePath::bitmap) {
    check_launch(checks, cuda::fast_bitmap(w, padded.const_data_ptr(), columns, rows, bias_data(of_bias),
                                           y.mutable_data_ptr(), type, stream));
    return y;
  }
  const Tensor scratch = empty_beside(x, {cuda::sparse24_scratch(w, rows)}, ScalarType::Float);
  check_launch(checks, cuda::fast_sparse24(w, padded.const_data_ptr(), columns, rows, bias_data(of_bias),
                                           y.mutable_data_ptr(), type, mutable_data<float>(scratch), stream));
  return y;
}

}  // namespace torchcoinfer
