// How rows of x are cut into the register tiles of AVX-512.

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

}  // namespace torchcoinfer
