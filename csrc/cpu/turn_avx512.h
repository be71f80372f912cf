// Sixteen vectors of 32-bit lanes, turned. AVX-512.

#pragma once

#include <immintrin.h>

#include "cpu/decode_avx512.h"

namespace torchcoinfer::avx512 {

// vectors[r], lane j  ->  vectors[j], lane r.
TORCHCOINFER_AVX512_INLINE void turn(__m512i (&vectors)[16]) {
  __m512i twos[16], fours[16], eights[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    twos[i] = _mm512_unpacklo_epi32(vectors[i], vectors[i + 1]);
    twos[i + 1] = _mm512_unpackhi_epi32(vectors[i], vectors[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm512_unpacklo_epi64(twos[i + j], twos[i + j + 2]);
      fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(twos[i + j], twos[i + j + 2]);
    }
  // fours[i + c], 128-bit lane f: rows i .. i + 3 of lane 4f + c
#pragma GCC unroll 2
  for (int i = 0; i < 16; i += 8)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      eights[i + c] = _mm512_shuffle_i64x2(fours[i + c], fours[i + 4 + c], 0x88);      // f = 0, 2 of both
      eights[i + 4 + c] = _mm512_shuffle_i64x2(fours[i + c], fours[i + 4 + c], 0xdd);  // f = 1, 3
    }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    vectors[c] = _mm512_shuffle_i64x2(eights[c], eights[8 + c], 0x88);
    vectors[8 + c] = _mm512_shuffle_i64x2(eights[c], eights[8 + c], 0xdd);
    vectors[4 + c] = _mm512_shuffle_i64x2(eights[4 + c], eights[12 + c], 0x88);
    vectors[12 + c] = _mm512_shuffle_i64x2(eights[4 + c], eights[12 + c], 0xdd);
  }
}

// Steps of `wide` vectors, 16 lanes of a digit of a row each, to `count` lanes of `wide` digits.
TORCHCOINFER_AVX512 inline void turn_steps(const int32_t* steps, int64_t wide, int64_t count, int32_t* lanes) {
  const __mmask16 mask = static_cast<__mmask16>((1u << wide) - 1);
  for (int64_t first = 0; first < count; first += 16, steps += 16 * wide) {
    __m512i vectors[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r)
      vectors[r] = r < wide ? _mm512_load_si512(steps + 16 * r) : _mm512_setzero_si512();
    turn(vectors);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j)
      if (first + j < count) _mm512_mask_storeu_epi32(lanes + (first + j) * wide, mask, vectors[j]);
  }
}

}  // namespace torchcoinfer::avx512
