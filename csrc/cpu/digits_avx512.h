// The AVX-512 kernels of the dense format: x as int8 digits, so that vpdpbusd multiplies every width of code exactly.

#pragma once

#include "cpu/gemm_avx512.h"
#include "cpu/quant_linear.h"

namespace torchcoinfer::avx512 {

// Rows of x as int8 digits, most significant first. One digit: int8 activations, x = scale * d0, a scale a row. Two
// (16-bit dtypes) and three (float32): fixed point, x = scale * (256 * d0 + d1), or scale * (65536 * d0 + 256 * d1 + d2),
// a power of two for each row and segment. The error is at most 2^-15 (2^-23) of the segment's absolute maximum. A row
// with a value that is not finite has a scale of NaN.
//
// Stored as row tiles (RowTiles of `rows`, MOST / digits rows at most), one after another; in each, a lane is four
// neighboring k of one digit:
//   lanes   [KT * 8][tile rows][digits]
//   starts  [S][tile rows][digits]: minus the sum of the segment's digits, times the implicit zero point where the
//           weight is symmetric
//   scales  one digit: [tile rows]; else [S][tile rows]
struct DigitRows {
  const int32_t* lanes;
  const int32_t* starts;
  const float* scales;
  int64_t rows;
  int64_t row_lanes;  // KT * 8 * digits
  int64_t segments;
  int digits;

  int64_t scales_each() const {
    return digits == 1 ? 1 : segments;
  }
  // The tiles that begin at `row`, a tile's first.
  DigitRows from(int64_t row, int64_t count) const {
    return {lanes + row * row_lanes, starts + row * segments * digits, scales + row * scales_each(), count,
            row_lanes, segments, digits};
  }
};

struct DigitTiles : RowTiles {
  DigitTiles(int64_t rows, int digits) : RowTiles(rows, MOST / digits) {}
};

// Fills row tiles [begin, end) of rows [row, row + tiles.rows) of x. `factor`: what starts are multiplied by.
struct DigitTarget {
  int32_t* lanes;
  int32_t* starts;
  float* scales;
};
void digit_rows(const SourceRows& x, int64_t row, const DigitTiles& tiles, const Segments& segments, int digits,
                int factor, const DigitTarget& out, int64_t begin, int64_t end);

// One row tile: weights are decoded in registers. n-blocks [begin, end).
void gemv_digits(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t begin, int64_t end);

// Any number of row tiles: weight tiles are decoded once into L1 and used for all rows.
void gemm_digits(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t begin, int64_t end);

// A whole linear call (quant_linear.h).
void run_linear(const LinearCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer::avx512
