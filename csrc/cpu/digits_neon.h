// The NEON kernels for machines with dot products: x as int8 digits, as on AVX-512 (digits_avx512.h), so that sdot and
// smmla multiply codes of every width exactly.

#pragma once

#include "cpu/isa.h"

#if TORCHCOINFER_ARM

#include <algorithm>

#include "cpu/quant_linear.h"

namespace torchcoinfer::neon {

constexpr int64_t MOST_DIGITS_TOGETHER = 6;  // rows of a tile, a row of two digits counts twice: 24 registers of sums

// Nearly equal tiles of rows.
struct DigitTiles {
  int64_t rows;
  int64_t count;

  DigitTiles(int64_t rows, int digits) : rows(rows), count(ceil_div(rows, MOST_DIGITS_TOGETHER / digits)) {}
  int64_t begin(int64_t tile) const {
    return tile * rows / count;
  }
};

// Rows of x as int8 digits, most significant first: what they mean, and their scales, stands in digits_avx512.h.
// A tile's digit rows are row by row, in each digit by digit; one of R digit rows begins at its first row's place:
//   lanes   dot products [KT * 8][R][4 k];  matrix products [KT * 4][pairs of digit rows][2][8 k], the last pair of an
//           odd number filled up with zeros
//   starts  [S][R]: minus the sum of the segment's digits
//   scales  one digit: [height]; else [S][height]
struct DigitRows {
  const int8_t* lanes;
  const int32_t* starts;
  const float* scales;
  DigitTiles tiles;
  int64_t row_bytes;  // of lanes a row of x takes, room for filling up counted
  int64_t segments;
  int digits;

  const int8_t* tile_lanes(int64_t row) const {
    return lanes + row * row_bytes;
  }
  const int32_t* tile_starts(int64_t row) const {
    return starts + row * segments * digits;
  }
  const float* tile_scales(int64_t row) const {
    return scales + row * (digits == 1 ? 1 : segments);
  }
};

struct DigitTarget {
  int8_t* lanes;
  int32_t* starts;
  float* scales;
};

// Fills tiles [begin, end) of all rows of x. `pairs`: for matrix products.
void digit_rows(const SourceRows& x, const DigitTiles& tiles, const Segments& segments, int digits, bool pairs,
                int64_t row_bytes, const DigitTarget& out, int64_t begin, int64_t end);

// Tiles [first, last) of x times n-blocks [begin, end).
#define TORCHCOINFER_DIGIT_KERNEL(name)                                                                    \
  void name(const QuantMatrix& w, const DigitRows& x, int64_t first, int64_t last, const Output& out, int64_t begin, \
            int64_t end)

TORCHCOINFER_DIGIT_KERNEL(gemv_digits);  // one tile: weights are decoded in registers
TORCHCOINFER_DIGIT_KERNEL(gemm_dots);    // weights are decoded into L1; dot products
TORCHCOINFER_DIGIT_KERNEL(gemm_pairs);   // likewise; matrix products

// A whole linear call (quant_linear.h).
void run_linear(const LinearCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer::neon

#endif
