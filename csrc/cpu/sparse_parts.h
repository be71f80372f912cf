// The ways to multiply a sparse matrix, chosen by sparse_linear.cpp. Each returns false where the masks of a block and
// its survivors disagree in number.

#pragma once

#include "cpu/sparse.h"

namespace torchcoinfer {

constexpr int64_t SPARSE_WORK_GRAIN = 1 << 18;     // multiply-adds that are worth a thread
constexpr int64_t SPARSE_ELEMENT_GRAIN = 1 << 15;  // elements of x that are worth a thread

// Float survivors, sums of float32 products.
bool multiply_floats(const SparseCall& call, const ParallelFor& parallel);

namespace avx512 {

struct DigitRows;

// Float survivors times bfloat16 rows: survivors of other types are rounded to bfloat16, as a dense layer's weights
// would be; sums in float32.
bool multiply_pairs(const SparseCall& call, const ParallelFor& parallel);

// Quantized survivors and one row tile of digits (digits_avx512.h): codes are spread and multiplied in registers.
bool are_few_codes(const SparseCall& call);
bool multiply_few_codes(const SparseCall& call, const ParallelFor& parallel);
// Its way for 2:4 and up to 6 bits. w: scales and zero points.
bool multiply_few_paired(const SparseCall& call, const QuantMatrix& w, const DigitRows& x, const ParallelFor& parallel);

}  // namespace avx512
}  // namespace torchcoinfer
