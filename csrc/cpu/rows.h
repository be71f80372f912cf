// Brings rows of x into the form a linear kernel takes (linear.h): converted or quantized, padded, with segment sums.

#pragma once

#include "cpu/isa.h"
#include "cpu/linear.h"

namespace torchcoinfer {

// Rows of x: element (m, k) at index m * row_stride + k of `data`.
struct SourceRows {
  const void* data;
  Dtype dtype;
  int64_t row_stride;
  int64_t K;
  bool in_codes = false;  // float32 in units of int8 codes, none beyond 127: to be rounded with scale 1
};

// Each fills rows [begin, end) of its outputs; values are [rows, KT * 32], sums [rows, S] or nullptr.
void float_rows(const SourceRows& x, const Segments& segments, Isa isa, int64_t begin, int64_t end, float* values,
                float* sums);
// out: float32 [rows, K], x / scales[k] within +-127.
void scale_columns(const SourceRows& x, const float* scales, int64_t begin, int64_t end, float* out);
// Symmetric int8 a row: scale = absmax / 127, code = rint(x * (127 / absmax)).
void code_rows(const SourceRows& x, const Segments& segments, Isa isa, int64_t begin, int64_t end, int8_t* values,
               float* scales, int32_t* sums);

}  // namespace torchcoinfer
