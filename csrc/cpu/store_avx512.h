// Writes 16 finished sums of one row to the output (linear.h), bias added, rounded to its dtype.

#pragma once

#include <immintrin.h>

#include "cpu/decode_avx512.h"
#include "cpu/linear.h"

namespace torchcoinfer::avx512 {

// bfloat16 bits, round to nearest even; unlike vcvtneps2bf16 it keeps denormals.
TORCHCOINFER_AVX512_INLINE __m256i to_bfloat16(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

// Values in a dtype of 16 bits.
TORCHCOINFER_AVX512_INLINE __m256i to_halves(__m512 values, Dtype dtype) {
  return dtype == Dtype::float16 ? _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                                 : to_bfloat16(values);
}

// Up to 16 neighboring elements of y from index `place` on.
TORCHCOINFER_AVX512_INLINE void store_lanes(__m512 values, const Output& out, int64_t place, __mmask16 mask) {
  if (out.dtype == Dtype::float32) {
    _mm512_mask_storeu_ps(static_cast<float*>(out.y) + place, mask, values);
  } else {
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out.y) + place, mask, to_halves(values, out.dtype));
  }
}

TORCHCOINFER_AVX512_INLINE void store_sums(__m512 sums, const Output& out, int64_t row, int64_t block) {
  const int64_t n = block * BLOCK_N;
  if (out.column_stride != 1 || n < out.first) {
    alignas(64) float values[BLOCK_N];
    _mm512_store_ps(values, sums);
    store_row(values, out, row, block);
    return;
  }
  const int64_t columns = out.last - n;
  const __mmask16 mask = columns >= BLOCK_N ? 0xffff : static_cast<__mmask16>((1 << columns) - 1);
  if (out.bias) sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(mask, out.bias + n));
  store_lanes(sums, out, row * out.row_stride + n, mask);
}

}  // namespace torchcoinfer::avx512
