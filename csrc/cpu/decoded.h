// Many bfloat16 rows of x: the weight becomes plain bfloat16 rows, part by part, and torch multiplies, so that no format
// is slower than a dense layer there. The weight is rounded to bfloat16, as a dense layer's would be.

#pragma once

#include <algorithm>

#include "cpu/sparse.h"

namespace torchcoinfer {

// Plain rows of one part: they stay in the cache next to where they are multiplied, and no call takes more memory.
constexpr int64_t DECODED_BYTES = 2 << 20;
constexpr int64_t DECODED_GRAIN = 1 << 17;  // weights that are worth a thread

// How a weight is stored: by the rows of x from which on torch is sooner done, measured on Zen 5 (floats with amx:
// reckoned, torch has tiles there). Decoding takes as long as the products of about ten rows. The kernels of codes lose
// to torch by a tenth where rows are many, and by more where K is small: they finish and store a sum more slowly.
enum class Stored { codes, sparse_codes, floats };

inline int64_t decoded_rows(Isa isa, Stored stored, int64_t K) {
  if (stored == Stored::floats) return isa == Isa::amx ? 16 : 128;
  return std::clamp<int64_t>(K / 2, 128, stored == Stored::codes ? 384 : 192);
}

// Whether a weight-only layer goes that way.
inline bool is_decoded(Isa isa, Dtype x, int64_t rows, int64_t activation_bits, Stored stored, int64_t N, int64_t K) {
#if TORCHCOINFER_X86
  return has_avx512(isa) && x == Dtype::bfloat16 && !activation_bits && N > 0 && K > 0 &&
         rows >= decoded_rows(isa, stored, K);
#else
  (void)isa, (void)x, (void)rows, (void)activation_bits, (void)stored, (void)N, (void)K;
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
