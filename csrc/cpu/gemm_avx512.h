// The two AVX-512 walks of the packed GEMM: few rows (gemv_avx512.cpp) and many (gemm_avx512.cpp).

#pragma once

#include "cpu/linear.h"

namespace torchcoinfer {

// Heights of the register tiles that `rows` rows are cut into: nearly equal, at most MOST.
struct RowTiles {
  static constexpr int64_t MOST = 12;  // times two blocks: 24 of the 32 registers are sums
  int64_t rows;
  int64_t count;

  explicit RowTiles(int64_t rows) : rows(rows), count(ceil_div(rows, MOST)) {}
  int64_t begin(int64_t tile) const {
    return tile * rows / count;
  }
};

namespace avx512 {

// At most GEMV_ROWS rows. Rows: FloatRows, PairRows or CodeRows.
template <typename Rows>
void gemv(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end);

// Row-major rows of `lanes` 32-bit lanes each to panels: every row tile k-major, [lanes][tile rows], one after another;
// row tiles [begin, end) of them. Rows whose distance is a power of two would fight for the same few L1 sets.
void to_panels(const void* values, int64_t rows, int64_t lanes, int64_t begin, int64_t end, void* panels);

// Any number of rows, as panels: weight tiles are decoded once into L1 and used for all rows.
template <typename Rows>
void gemm(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end);

}  // namespace avx512
}  // namespace torchcoinfer
