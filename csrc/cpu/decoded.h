// Many bfloat16 rows of x: the weight becomes plain bfloat16 rows, part by part, and torch multiplies, so that no format
// is slower than a dense layer there. The weight is rounded to bfloat16, as a dense layer's would be.

#pragma once

#include "cpu/sparse.h"

namespace torchcoinfer {

// Plain rows of one part: they stay in the cache next to where they are multiplied, and no call takes more memory.
constexpr int64_t DECODED_BYTES = 2 << 20;

// From so many rows on decoding, which takes about as long as the products of ten rows, is paid back.
constexpr int64_t DECODED_ROWS = 96;
constexpr int64_t DECODED_FLOATS_ROWS_AMX = 16;  // torch has tiles there; reckoned, not measured

// Whether a weight-only layer goes that way; `floats`: its weight is stored in floats.
inline bool is_decoded(Isa isa, Dtype x, int64_t rows, int64_t activation_bits, bool floats, int64_t N, int64_t K) {
#if TORCHCOINFER_X86
  const int64_t least = floats && isa == Isa::amx ? DECODED_FLOATS_ROWS_AMX : DECODED_ROWS;
  return has_avx512(isa) && x == Dtype::bfloat16 && !activation_bits && rows >= least && N > 0 && K > 0;
#else
  (void)isa, (void)x, (void)rows, (void)activation_bits, (void)floats, (void)N, (void)K;
  return false;
#endif
}

#if TORCHCOINFER_X86
// n-blocks [begin, end) as bfloat16 rows [.., K] from the first block's on; rows from N on are left out.
void decode_rows(const QuantMatrix& w, int64_t begin, int64_t end, uint16_t* out);
// False: the masks of a block and its survivors disagree in number.
bool decode_rows(const SparseMatrix& w, int64_t begin, int64_t end, uint16_t* out);

namespace avx512 {

// Its way for float survivors.
bool decode_float_rows(const SparseMatrix& w, int64_t begin, int64_t end, uint16_t* out);

}  // namespace avx512
#endif

}  // namespace torchcoinfer
