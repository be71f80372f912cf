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
// Stored as row tiles (RowTiles of `rows`, as DigitTiles says), one after another; in each, a lane is four
// neighboring k of one digit:
//   lanes   [KT * 8][tile rows][digits]
//   starts  [S][tile rows][digits]: minus the sum of the segment's digits, times the implicit zero point where the
//           weight is symmetric; of several digits the first has 0 and the second 256 * first + second
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
  static constexpr int64_t ALONE = 16;  // digits of a tile that is the only one: times one block
  DigitTiles(int64_t rows, int digits) : RowTiles(rows, (rows * digits <= ALONE ? ALONE : MOST) / digits) {}
};

// Fills row tiles [begin, end) of rows [row, row + tiles.rows) of x. `factor`: what starts are multiplied by.
struct DigitTarget {
  int32_t* lanes;
  int32_t* starts;
  float* scales;
};
void digit_rows(const SourceRows& x, int64_t row, const DigitTiles& tiles, const Segments& segments, int digits,
                int factor, const DigitTarget& out, int64_t begin, int64_t end);

// Rows of x as slabs for the tiles of AMX: `planes` tiles of `height` rows, which are the digits of the same rows, or
// of one digit further rows. `unit_k` columns are a tile's 64 bytes a row, or 32 where segments are that short. Slab by
// slab:
//   lanes   [units][planes][height][unit_k / 4], missing rows of the last slab 0
//   starts  [S][slab rows][digits]
//   scales  one digit: [slab rows]; else [S][slab rows]
struct Slabs {
  static constexpr int64_t MOST_HEIGHT = 16;
  int64_t rows;
  int digits;
  int64_t unit_k;
  int64_t units;
  int64_t planes;
  int64_t count;
  int64_t height;

  Slabs(int64_t rows, int digits, const Segments& segments)
      : rows(rows),
        digits(digits),
        unit_k(segments.tiles_each == 1 ? TILE_K : 2 * TILE_K),
        units(ceil_div(segments.tiles * TILE_K, unit_k)),
        planes(digits > 1 ? digits : rows > MOST_HEIGHT ? 2 : 1),
        count(ceil_div(rows, MOST_HEIGHT * row_planes())),
        height(ceil_div(rows, count * row_planes())) {}
  int64_t row_planes() const {
    return digits > 1 ? 1 : planes;
  }
  int64_t slab_rows() const {
    return height * row_planes();
  }
  int64_t slab_lanes() const {
    return units * planes * height * (unit_k / 4);
  }
};
void digit_slabs(const SourceRows& x, const Slabs& slabs, const Segments& segments, int factor, const DigitTarget& out,
                 int64_t begin, int64_t end);

// How many digits the rows of a call take.
inline int digit_count(const LinearCall& call) {
  return call.activation_bits == 8 ? 1 : call.x.dtype == Dtype::float32 ? 3 : 2;
}

// One row tile: weights are decoded in registers. n-blocks [begin, end).
void gemv_digits(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t begin, int64_t end);

// Any number of row tiles: weight tiles are decoded once into L1 and used for all rows.
void gemm_digits(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t begin, int64_t end);

// A whole linear call (quant_linear.h).
void run_linear(const LinearCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer::avx512
