// Which kernel runs a dense linear layer, and why: the one place that decides. Whatever has no fast kernel takes the
// plain one, which serves everything.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <string>

#include "cuda/arguments.h"
#include "torch_linear.h"

namespace torchcoinfer {

enum class DensePath { plain, gemv, gemm, hopper, decoded, bytes };

// From here on decoding the weight and cuBLAS are sooner done than the fused GEMM. Reckoned for an H100, not measured
// yet: a weight costs .8 ps to decode (2.5 bytes), a row of x 2 operations a weight: 4 fs at the 500 TFLOPS that mma
// from registers may reach, 3 fs at cuBLAS' 680.
constexpr int64_t DECODE_ROWS = 768;

// Rows that wgmma serves where it is asked for: with fewer a tile is mostly padding; with more the weight is decoded in
// a small part of the product's time. Reckoned, not measured yet.
constexpr int64_t HOPPER_ROWS = 64, HOPPER_MOST_ROWS = 4095;

// TORCHCOINFER_CUDA_HOPPER=1: the kernel by wgmma has run on no GPU yet, so it must be asked for.
inline bool hopper_asked() {
  const char* asked = std::getenv("TORCHCOINFER_CUDA_HOPPER");
  if (!asked || !*asked) return false;
  const std::string value = asked;
  check(value == "0" || value == "1", "quant_linear", "TORCHCOINFER_CUDA_HOPPER", "0 or 1", value);
  return value == "1";
}

inline bool is_vector_aligned(const void* place) {
  return reinterpret_cast<uintptr_t>(place) % LANE_BYTES == 0;
}

inline DensePath dense_path(const cuda::DenseMatrix& w, Dtype x, int64_t rows, int64_t activation_bits) {
  // In the canonical order a lane's codes do not lie together. Exports carry it: it must run, not be fast.
  if (w.layout != DEVICE_LAYOUT) return DensePath::plain;
  // The codes are read in vectors of 16 bytes; a buffer that is a slice of a file may begin anywhere.
  if (!is_vector_aligned(w.packed)) return DensePath::plain;
  // Nothing to multiply.
  if (w.K == 0 || w.N == 0 || rows == 0) return DensePath::plain;
  // int8 codes of x: exact sums, from any dtype and for any number of rows.
  if (activation_bits) return DensePath::bytes;
  // Tensor cores would round float32 to 10 bits unasked: few rows are memory-bound in the plain kernel, more are torch's
  // to multiply, by the precision that its user chose.
  if (x == Dtype::float32) return rows <= cuda::GEMV_ROWS ? DensePath::plain : DensePath::decoded;
  // Memory-bound: no shared memory, no barrier before the end.
  if (rows <= cuda::GEMV_ROWS) return DensePath::gemv;
  // On request, see above. The weight is then rounded to x's dtype, as in the next path.
  const bool many = rows >= HOPPER_ROWS && rows <= HOPPER_MOST_ROWS;
  if (many && hopper_asked() && cuda::hopper_serves()) return DensePath::hopper;
  // The weight is then rounded to x's dtype. One that fp16 cannot hold is none of a model that runs in fp16.
  if (rows >= DECODE_ROWS) return DensePath::decoded;
  return DensePath::gemm;
}

// x [rows, K], contiguous, from a multiple of 16 bytes, K rounded up to 8: x itself or a copy.
inline Tensor aligned_rows(const Checker& checks, const Tensor& x, Dtype dtype, int64_t rows, int64_t K) {
  const int64_t columns = ceil_div(K, 8) * 8;
  if (columns == K && is_vector_aligned(x.const_data_ptr())) return x;
  Tensor copy = empty_beside(x, {rows, columns}, x.scalar_type());
  check_launch(checks, cuda::pad_rows(x.const_data_ptr(), element(dtype), rows, K, columns, copy.mutable_data_ptr(),
                                      current_stream(x)));
  return copy;
}

// x [rows, columns] times the decoded weight.
inline Tensor decoded_linear(const Checker& checks, const cuda::DenseMatrix& w, const Tensor& x, Dtype dtype,
                             int64_t rows, int64_t columns, const std::optional<Tensor>& bias) {
  Tensor weight = empty_beside(x, {w.N, columns}, x.scalar_type());
  check_launch(checks,
               cuda::decode_weight(w, element(dtype), columns, weight.mutable_data_ptr(), current_stream(x)));
  const std::vector<int64_t> flat{rows, columns};
  const Tensor matrix = torch::stable::reshape(x, {flat.data(), flat.size()});
  std::optional<Tensor> beside;
  if (bias.has_value()) beside = torch::stable::to(*bias, x.scalar_type());
  return torch_linear(matrix, weight, beside);
}

// x [rows, K] of any dtype, contiguous, rounded to int8 codes row by row; into y.
inline void byte_linear(const Checker& checks, const cuda::DenseMatrix& w, const Tensor& x, Dtype dtype, int64_t rows,
                        const Tensor& bias, Tensor& y) {
  const int64_t quad = QUAD * TILE_K, columns = ceil_div(w.K, quad) * quad, span = w.group_size ? w.group_size : quad;
  const int64_t sum_rows = ceil_div(rows, cuda::BYTE_SUM_ROWS) * cuda::BYTE_SUM_ROWS;
  const Tensor codes = empty_beside(x, {rows, columns}, ScalarType::Char);
  const Tensor sums = empty_beside(x, {columns / span, sum_rows}, ScalarType::Int);
  const Tensor scales = empty_beside(x, {rows}, ScalarType::Float);
  const Tensor scratch = empty_beside(x, {cuda::byte_scratch(w, rows)}, ScalarType::Float);
  void* stream = current_stream(x);
  check_launch(checks, cuda::byte_rows(x.const_data_ptr(), element(dtype), rows, w.K, w.bits, static_cast<int>(span),
                                       sum_rows, mutable_data<int8_t>(codes), mutable_data<int32_t>(sums),
                                       mutable_data<float>(scales), stream));
  check_launch(checks, cuda::byte_linear(w, data<int8_t>(codes), data<int32_t>(sums), sum_rows, data<float>(scales),
                                         rows, bias_data(bias), y.mutable_data_ptr(), element(dtype),
                                         mutable_data<float>(scratch), stream));
}

// The layer by a fast kernel; nothing where only the plain one serves it.
inline std::optional<Tensor> fast_linear(const Checker& checks, const cuda::DenseMatrix& w, const Tensor& x,
                                         const std::optional<Tensor>& bias, int64_t activation_bits) {
  const Dtype dtype = checks.floating("x", x);
  const auto [rows, size] = RowsOf(x, w.N);
  const DensePath path = dense_path(w, dtype, rows, activation_bits);
  if (path == DensePath::plain) return std::nullopt;
  const Tensor of_bias = bias_values(checks, bias, w.N, x);
  const Tensor rows_of_x = torch::stable::contiguous(x);
  if (path == DensePath::bytes) {
    Tensor y = empty_beside(x, size, x.scalar_type());
    byte_linear(checks, w, rows_of_x, dtype, rows, of_bias, y);
    return y;
  }
  // wgmma has x copied anyway
  const Tensor values = path == DensePath::hopper ? rows_of_x : aligned_rows(checks, rows_of_x, dtype, rows, w.K);
  const int64_t columns = values.numel() / rows;
  if (path == DensePath::decoded) {
    const Tensor y = decoded_linear(checks, w, values, dtype, rows, columns, bias);
    return torch::stable::reshape(y, {size.data(), size.size()});
  }
  Tensor y = empty_beside(x, size, x.scalar_type());
  const bool few = path == DensePath::gemv, hopper = path == DensePath::hopper;
  const auto size_of = few ? cuda::gemv_scratch : hopper ? cuda::hopper_scratch : cuda::gemm_scratch;
  const Tensor scratch = empty_beside(x, {size_of(w, rows)}, ScalarType::Float);
  const auto kernel = few ? cuda::gemv_linear : hopper ? cuda::hopper_linear : cuda::gemm_linear;
  check_launch(checks, kernel(w, values.const_data_ptr(), element(dtype), columns, rows, bias_data(of_bias),
                              y.mutable_data_ptr(), mutable_data<float>(scratch), current_stream(x)));
  return y;
}

}  // namespace torchcoinfer
