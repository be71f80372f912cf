// Chunks of 64 codes (layout_sparse.h) in AVX-512 registers.

#pragma once

#include "cpu/decode_avx512.h"
#include "layout_sparse.h"

namespace torchcoinfer::avx512 {

// The fields of one plane of a chunk, at the lowest bits of each byte. P 4: 32 bytes twice; 2: 16 bytes four times, ...
template <int P>
TORCHCOINFER_AVX512_INLINE __m512i plane_fields(const uint8_t* bytes) {
  const __m512i mask = bytes_of((1 << P) - 1);
  if constexpr (P == 8) return load_vector(bytes);
  if constexpr (P == 4) {
    const __m512i twice = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
    return _mm512_and_si512(_mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4)), mask);
  }
  if constexpr (P == 2) {
    const __m512i four = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    return _mm512_and_si512(_mm512_srlv_epi64(four, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6)), mask);
  }
  long long eight;
  __builtin_memcpy(&eight, bytes, sizeof eight);
  return _mm512_and_si512(_mm512_srlv_epi64(_mm512_set1_epi64(eight), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7)),
                          mask);
}

// One chunk's codes, a byte each.
template <int BITS>
TORCHCOINFER_AVX512_INLINE __m512i chunk_codes(const uint8_t* chunk) {
  constexpr Plane low = plane(BITS, 0);
  const __m512i codes = plane_fields<low.bits>(chunk);
  if constexpr (plane_count(BITS) == 1) return codes;
  constexpr Plane high = plane(BITS, 1);
  return _mm512_or_si512(codes, _mm512_slli_epi16(plane_fields<high.bits>(chunk + 8 * high.shift), high.shift));
}

}  // namespace torchcoinfer::avx512
