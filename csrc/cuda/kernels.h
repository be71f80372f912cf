// CUDA kernels on plain device pointers, enqueued on the stream given. No torch header. Each returns nullptr, or why the
// launch failed.

#pragma once

#include <cstdint>

namespace torchcoinfer::cuda {

enum class Element { float32, float16, bfloat16 };

// One matrix in the dense format (layout.h), canonical order.
struct DenseMatrix {
  const uint8_t* packed;  // [NB, KT, 64 * bits]
  const void* scales;     // [NB, G, 16] of scale_type
  const uint8_t* zeros;   // [NB, G, 16]; nullptr: symmetric
  Element scale_type;
  int bits;
  int64_t group_size;  // 0: the whole row
  int64_t N;
  int64_t K;
};

// out: [N, K] of type
const char* dequantize(const DenseMatrix& w, void* out, Element type, void* stream);

// values: float [rows, KT * 32] from x [rows, K] of type, zeros beyond K.
const char* float_rows(const void* x, Element type, int64_t rows, int64_t K, float* values, void* stream);

// The same with every row rounded to symmetric int8 codes: scales [rows] = absmax / 127, values = the codes.
const char* code_rows(const void* x, Element type, int64_t rows, int64_t K, float* values, float* scales,
                      void* stream);

// y [rows, N] of type = (values W^T) * row_scales + bias. row_scales [rows] and bias [N] may be nullptr.
const char* quant_linear(const DenseMatrix& w, const float* values, int64_t rows, const float* row_scales,
                         const float* bias, void* y, Element type, void* stream);

}  // namespace torchcoinfer::cuda
