// What the digit kernels do around a segment: start values, scaling, and the store of finished sums.

#pragma once

#include <immintrin.h>

#include "cpu/decode_avx512.h"
#include "cpu/digits_avx512.h"
#include "cpu/store_avx512.h"

namespace torchcoinfer::avx512 {

// sums += codes * digits, as an instruction: from the intrinsic g++ 12 makes copies and spills of the sums.
TORCHCOINFER_AVX512_INLINE void add_products(__m512i codes, __m512i digits, __m512i& sums) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(digits));
}

// What the sums of a segment start from, minus zero point times sum of digits: exact. 0 for the first of several.
TORCHCOINFER_AVX512_INLINE __m512i start(const QuantMatrix& w, int64_t place, int32_t start) {
  const __m512i starts = _mm512_set1_epi32(start);
  return w.zeros ? _mm512_mullo_epi32(load_zeros(w, place), starts) : starts;
}

// sums += scale * (the digits' sums put together) * x_scale. The first two digits as integers: below 2^31, as no
// segment has more than 256 products of at most 255 * 127 in the first and 255 * 128 in the second.
template <int DIGITS>
TORCHCOINFER_AVX512_INLINE void add_segment(const __m512i* digits, __m512 scale, float x_scale, float* sums) {
  __m512 whole = _mm512_cvtepi32_ps(
      DIGITS == 1 ? digits[0] : _mm512_add_epi32(_mm512_slli_epi32(digits[0], 8), digits[DIGITS > 1]));
#pragma GCC unroll 3
  for (int d = 2; d < DIGITS; ++d) whole = _mm512_fmadd_ps(whole, _mm512_set1_ps(256.f), _mm512_cvtepi32_ps(digits[d]));
  if (DIGITS > 1) whole = _mm512_mul_ps(whole, _mm512_set1_ps(x_scale));
  _mm512_store_ps(sums, _mm512_fmadd_ps(scale, whole, _mm512_load_ps(sums)));
}

// Finished sums of row `m` of x to row `row` of y.
template <int DIGITS>
TORCHCOINFER_AVX512_INLINE void store_scaled(const float* sums, const DigitRows& x, int64_t m, const Output& out,
                                             int64_t row, int64_t block) {
  const __m512 values = _mm512_load_ps(sums);
  store_sums(DIGITS == 1 ? _mm512_mul_ps(values, _mm512_set1_ps(x.scales[m])) : values, out, row, block);
}

}  // namespace torchcoinfer::avx512
