// Which kernel runs a dense linear layer, and why: the one place that decides. Whatever has no fast kernel takes the
// plain one, which serves everything.

#pragma once

#include "cuda/arguments.h"

namespace torchcoinfer {

enum class DensePath { plain, gemv };

inline bool is_vector_aligned(const void* place) {
  return reinterpret_cast<uintptr_t>(place) % LANE_BYTES == 0;
}

inline DensePath dense_path(const cuda::DenseMatrix& w, Dtype x, int64_t rows, int64_t activation_bits) {
  // In the canonical order a lane's codes do not lie together. Exports carry it: it must run, not be fast.
  if (w.layout != DEVICE_LAYOUT) return DensePath::plain;
  // The codes are read in vectors of 16 bytes; a buffer that is a slice of a file may begin anywhere.
  if (!is_vector_aligned(w.packed)) return DensePath::plain;
  // Nothing to multiply.
  if (w.K == 0 || rows == 0) return DensePath::plain;
  if (activation_bits) return DensePath::plain;
  // The tensor cores would round float32 to 10 bits, which nobody asked for.
  if (x == Dtype::float32) return DensePath::plain;
  if (rows <= cuda::GEMV_ROWS) return DensePath::gemv;
  return DensePath::plain;
}

// x [rows, K] of 16 bits, contiguous, from a multiple of 16 bytes, K rounded up to 8: x itself or a copy.
inline Tensor aligned_rows(const Checker& checks, const Tensor& x, int64_t rows, int64_t K) {
  const int64_t columns = ceil_div(K, 8) * 8;
  if (columns == K && is_vector_aligned(x.const_data_ptr())) return x;
  Tensor copy = empty_beside(x, {rows, columns}, x.scalar_type());
  check_launch(checks, cuda::pad_rows(x.const_data_ptr(), rows, K, columns, copy.mutable_data_ptr(), current_stream(x)));
  return copy;
}

// The layer by a fast kernel; nothing where only the plain one serves it.
inline std::optional<Tensor> fast_linear(const Checker& checks, const cuda::DenseMatrix& w, const Tensor& x,
                                         const Tensor& bias, int64_t activation_bits) {
  const Dtype dtype = checks.floating("x", x);
  std::vector<int64_t> size;
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) {
    size.push_back(x.size(i));
    rows *= x.size(i);
  }
  const DensePath path = dense_path(w, dtype, rows, activation_bits);
  if (path == DensePath::plain) return std::nullopt;
  size.push_back(w.N);
  Tensor y = empty_beside(x, size, x.scalar_type());
  const Tensor values = aligned_rows(checks, torch::stable::contiguous(x), rows, w.K);
  const int64_t columns = values.numel() / rows;
  const Tensor scratch = empty_beside(x, {cuda::gemv_scratch(w, rows)}, ScalarType::Float);
  check_launch(checks, cuda::gemv_linear(w, values.const_data_ptr(), element(dtype), columns, rows, bias_data(bias),
                                         y.mutable_data_ptr(), mutable_data<float>(scratch), current_stream(x)));
  return y;
}

}  // namespace torchcoinfer
