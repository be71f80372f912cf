// The packed GEMM that quant_linear and quant_conv2d share: y = x W^T + bias over a range of n-blocks, one file per
// instruction set. No torch header.
//
// K is walked in segments: a quantization group, or SEGMENT_K columns where one group spans the row. A segment's sum
// over codes is formed on its own and then scaled once, y += scale * (sum - offset * sum of x), so that neither codes
// nor zero points are ever rounded. The order of additions for a row depends on neither threads nor neighboring rows.

#pragma once

#include <cstdint>

#include "cpu/pack.h"
#include "layout.h"

namespace torchcoinfer {

constexpr int64_t SEGMENT_K = 256;  // length of a segment where group_size is 0
constexpr int64_t GEMV_ROWS = 4;    // up to so many rows of x, weights are decoded in registers

struct Segments {
  int64_t tiles_each;  // tiles a segment, the last may have fewer
  int64_t tiles;       // KT
  int64_t count;       // S
  bool one_group;      // all segments share group 0

  Segments(int64_t K, int64_t group_size)
      : tiles_each((group_size ? group_size : SEGMENT_K) / TILE_K),
        tiles(ceil_div(K, TILE_K)),
        count(ceil_div(tiles, tiles_each)),
        one_group(group_size == 0) {}
  int64_t begin(int64_t segment) const {
    return segment * tiles_each;
  }
  int64_t end(int64_t segment) const {
    const int64_t last = begin(segment) + tiles_each;
    return last < tiles ? last : tiles;
  }
  int64_t group(int64_t segment) const {
    return one_group ? 0 : segment;
  }
  int64_t groups() const {
    return one_group ? 1 : count;
  }
};

// Activations as a kernel takes them: `rows` rows of `stride` elements, K padded with zeros to KT * 32.
struct FloatRows {
  const float* values;  // [rows, stride]
  const float* sums;    // [rows, S]: sum over each segment; read only when the weight has zero points
  int64_t rows;
  int64_t stride;
};
struct PairRows {          // bfloat16, four consecutive k stored as k0 k2 k1 k3: the pairs of a decoded vector
  const uint16_t* values;  // [rows, stride]
  const float* sums;       // [rows, S]
  int64_t rows;
  int64_t stride;
};
struct CodeRows {         // int8, x = scale * code
  const int8_t* values;   // [rows, stride]
  const float* scales;    // [rows]
  const int32_t* sums;    // [rows, S]: sums of codes
  int64_t rows;
  int64_t stride;
};

// Where results go: y[row * row_stride + n * column_stride] for n in [first, last).
struct Output {
  void* y;
  Dtype dtype;
  int64_t row_stride;
  int64_t column_stride;
  int64_t first;
  int64_t last;
  const float* bias;  // [N] or nullptr
};

inline void store_row(const float* sums, const Output& out, int64_t row, int64_t block) {
  for (int j = 0; j < BLOCK_N; ++j) {
    const int64_t n = block * BLOCK_N + j;
    if (n < out.first || n >= out.last) continue;
    const float value = out.bias ? sums[j] + out.bias[n] : sums[j];
    store_float(value, out.y, out.dtype, row * out.row_stride + n * out.column_stride);
  }
}

// Kernels over n-blocks [begin, end). `few`: the whole call has at most GEMV_ROWS rows (x may be a part of them).
#define TORCHCOINFER_LINEAR_KERNEL(name, Rows) \
  void name(const QuantMatrix& w, const Rows& x, const Output& out, bool few, int64_t begin, int64_t end)

TORCHCOINFER_LINEAR_KERNEL(linear_float_scalar, FloatRows);
TORCHCOINFER_LINEAR_KERNEL(linear_codes_scalar, CodeRows);
TORCHCOINFER_LINEAR_KERNEL(linear_float_avx2, FloatRows);
TORCHCOINFER_LINEAR_KERNEL(linear_codes_avx2, CodeRows);
TORCHCOINFER_LINEAR_KERNEL(linear_float_neon, FloatRows);
TORCHCOINFER_LINEAR_KERNEL(linear_codes_neon, CodeRows);

}  // namespace torchcoinfer
