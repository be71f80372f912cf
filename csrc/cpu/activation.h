// The codec of tensors at the cut; the format is documented in torchcoinfer/ops/activation.py. No torch header.

#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace torchcoinfer {

// A contiguous tensor seen as rows (leading dims) of n values (trailing dims); channel of value i: i % channels.
struct CodecShape {
  int64_t rows;
  int64_t n;
  int64_t channels;
  int bits;
  bool by_token;  // scale and low [rows], else [channels]

  int64_t row_bytes() const {
    return (n * bits + 7) / 8;
  }
};

// Least value and step of rows [begin, end) (by_token) or channels [begin, end): low = min, scale = (max - min) /
// (2^bits - 1); NaN where a value is NaN, 0 and 0 where there is no value.
void activation_range(const CodecShape& shape, const void* x, Dtype dtype, Isa isa, int64_t begin, int64_t end,
                      float* scale, float* low);

// codes: uint8 [rows, row_bytes], rows [begin, end)
void encode_rows(const CodecShape& shape, const void* x, Dtype dtype, const float* scale, const float* low, Isa isa,
                 int64_t begin, int64_t end, uint8_t* codes);
// x: [rows, n] of dtype, rows [begin, end)
void decode_rows(const CodecShape& shape, const uint8_t* codes, const float* scale, const float* low, Dtype dtype,
                 Isa isa, int64_t begin, int64_t end, void* x);

}  // namespace torchcoinfer
