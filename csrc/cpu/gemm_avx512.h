// The AVX-512 packed GEMM on floats, bfloat16 pairs or codes that convolutions gather.

#pragma once

#include "cpu/linear.h"

namespace torchcoinfer {

// Heights of the register tiles that `rows` rows are cut into: nearly equal, at most MOST.
struct RowTiles {
  static constexpr int64_t MOST = 12;  // times two blocks: 24 of the 32 registers are sums
  int64_t rows;
  int64_t count;

  explicit RowTiles(int64_t rows, int64_t most = MOST) : rows(rows), count(ceil_div(rows, most)) {}
  int64_t begin(int64_t tile) const {
    return tile * rows / count;
  }
};

namespace avx512 {

// Any number of rows: weight tiles are decoded once into L1 and used for all. Rows: FloatRows, PairRows or CodeRows whose
// values are panels: every row tile k-major, [32-bit lanes][tile rows], one after another (rows whose distance is a
// power of two would fight for the same few L1 sets).
template <typename Rows>
void gemm(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end);

}  // namespace avx512
}  // namespace torchcoinfer
