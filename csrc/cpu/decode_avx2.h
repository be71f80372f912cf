// Decoding of dense tiles (layout.h) in AVX2 registers, and scales and zero points of a block.

#pragma once

#include <immintrin.h>

#include "cpu/isa.h"
#include "cpu/pack.h"
#include "layout.h"

#define TORCHCOINFER_AVX2_INLINE TORCHCOINFER_AVX2 static inline __attribute__((always_inline))

namespace torchcoinfer::avx2 {

constexpr int QUADS = TILE_K / 4;
constexpr int HALF = 8;  // n of one register

TORCHCOINFER_AVX2_INLINE __m256i load(const void* data) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(data));
}

TORCHCOINFER_AVX2_INLINE __m256i field(__m256i vector, int shift) {
  return shift >= 0 ? _mm256_srli_epi32(vector, shift) : _mm256_slli_epi32(vector, -shift);
}

// The quad q (n 8h .. 8h + 7, k 4q .. 4q + 3: byte i of lane n is k = 4q + i) of a tile as bytes.
template <int BITS>
TORCHCOINFER_AVX2_INLINE __m256i decode_quad(const uint8_t* tile, int q, int h) {
  constexpr Plane low = plane(BITS, 0);
  constexpr int fields = 8 / low.bits;
  const uint8_t* half = tile + VECTOR_BYTES / 2 * h;
  __m256i codes = load(half + VECTOR_BYTES * (q / fields));
  if (fields > 1)
    codes = _mm256_and_si256(field(codes, low.bits * (q % fields)),
                             _mm256_set1_epi8(static_cast<char>((1 << low.bits) - 1)));
  if constexpr (plane_count(BITS) == 2) {
    constexpr Plane high = plane(BITS, 1);
    constexpr int high_fields = 8 / high.bits;
    const __m256i vector = load(half + high.offset + VECTOR_BYTES * (q / high_fields));
    const __m256i mask = _mm256_set1_epi8(static_cast<char>(((1 << high.bits) - 1) << high.shift));
    const __m256i part = _mm256_and_si256(field(vector, high.bits * (q % high_fields) - high.shift), mask);
    codes = _mm256_or_si256(codes, part);
  }
  return codes;
}

struct GroupValues {
  __m256 scale[2];
  __m256i zero[2];
};

TORCHCOINFER_AVX2_INLINE GroupValues load_group(const QuantMatrix& w, int64_t place) {
  GroupValues group;
  for (int h = 0; h < 2; ++h) {
    const int64_t index = place * BLOCK_N + HALF * h;
    if (w.scale_dtype == Dtype::float32) {
      group.scale[h] = _mm256_loadu_ps(static_cast<const float*>(w.scales) + index);
    } else {
      const __m128i halves = _mm_loadu_si128(
          reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(w.scales) + index));
      group.scale[h] = w.scale_dtype == Dtype::float16
                           ? _mm256_cvtph_ps(halves)
                           : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
    group.zero[h] = w.zeros ? _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.zeros + index)))
                            : _mm256_set1_epi32(implicit_zero(w.bits));
  }
  return group;
}

}  // namespace torchcoinfer::avx2
