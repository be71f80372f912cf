// The two AVX-512 walks of the packed GEMM: few rows (gemv_avx512.cpp) and many (gemm_avx512.cpp).

#pragma once

#include "cpu/linear.h"

namespace torchcoinfer::avx512 {

// At most GEMV_ROWS rows. Rows: FloatRows, PairRows or CodeRows.
template <typename Rows>
void gemv(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end);

// Any number of rows: tiles are decoded once into L1 and used for all rows.
template <typename Rows>
void gemm(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end);

}  // namespace torchcoinfer::avx512
