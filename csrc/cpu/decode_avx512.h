// Decoding of dense tiles (layout.h) in AVX-512 registers: bytes, floats and bfloat16 pairs.
//
// A quad vector holds 16 n x 4 k: 32-bit lane n, byte i = code of k = 4q + i; a tile is 8 of them.

#pragma once

#include <immintrin.h>

#include "cpu/isa.h"
#include "cpu/pack.h"
#include "layout.h"

#define TORCHCOINFER_AVX512_INLINE TORCHCOINFER_AVX512 static inline __attribute__((always_inline))

namespace torchcoinfer::avx512 {

constexpr int QUADS = TILE_K / 4;

TORCHCOINFER_AVX512_INLINE __m512i load_vector(const uint8_t* data) {
  return _mm512_loadu_si512(data);
}

TORCHCOINFER_AVX512_INLINE __m512i bytes_of(int value) {
  return _mm512_set1_epi8(static_cast<char>(value));
}

// low | (high & mask)
TORCHCOINFER_AVX512_INLINE __m512i merge(__m512i low, __m512i high, __m512i mask) {
  return _mm512_ternarylogic_epi32(low, high, mask, 0xF8);
}

// Field `f` of a plane of P bits, moved to bit `to` of each byte; the other bits are garbage.
template <int P>
TORCHCOINFER_AVX512_INLINE __m512i field(__m512i vector, int f, int to) {
  const int shift = P * f - to;
  return shift >= 0 ? _mm512_srli_epi32(vector, shift) : _mm512_slli_epi32(vector, -shift);
}

// Quad q of a tile.
template <int BITS>
TORCHCOINFER_AVX512_INLINE __m512i decode_quad(const uint8_t* tile, int q) {
  constexpr Plane low = plane(BITS, 0);
  constexpr int fields = 8 / low.bits;
  const __m512i vector = load_vector(tile + VECTOR_BYTES * (q / fields));
  if constexpr (fields == 1) return vector;
  const __m512i codes = _mm512_and_si512(field<low.bits>(vector, q % fields, 0), bytes_of((1 << low.bits) - 1));
  if constexpr (plane_count(BITS) == 2) {
    constexpr Plane high = plane(BITS, 1);
    constexpr int high_fields = 8 / high.bits;
    const __m512i top = load_vector(tile + high.offset + VECTOR_BYTES * (q / high_fields));
    return merge(codes, field<high.bits>(top, q % high_fields, high.shift),
                 bytes_of(((1 << high.bits) - 1) << high.shift));
  }
  return codes;
}

template <int BITS>
TORCHCOINFER_AVX512_INLINE void decode_quads(const uint8_t* tile, __m512i* quads) {
#pragma GCC unroll 8
  for (int q = 0; q < QUADS; ++q) quads[q] = decode_quad<BITS>(tile, q);
}

// The values code - 2^(b-1) as floats or bfloat16 pairs: by table up to 32 (64) entries, else by conversion.
template <int BITS>
struct Values {
  static constexpr bool FLOAT_TABLE = BITS <= 5;
  static constexpr bool PAIR_TABLE = BITS <= 6;
  static constexpr int CENTER = implicit_zero(BITS);
  __m512 floats[2];
  __m512i pairs[2];

  TORCHCOINFER_AVX512 __attribute__((always_inline)) Values() {
    alignas(64) float table[32];
    alignas(64) uint16_t halves[64];
    for (int i = 0; i < 32; ++i) table[i] = static_cast<float>((i & ((1 << BITS) - 1)) - CENTER);
    for (int i = 0; i < 64; ++i) {
      const float value = static_cast<float>((i & ((1 << BITS) - 1)) - CENTER);
      Bfloat16 half;
      from_float(value, &half);
      halves[i] = half.bits;
    }
    floats[0] = _mm512_load_ps(table);
    floats[1] = _mm512_load_ps(table + 16);
    pairs[0] = _mm512_load_si512(halves);
    pairs[1] = _mm512_load_si512(halves + 32);
  }

  // Quads as the two functions below want them.
  TORCHCOINFER_AVX512 __attribute__((always_inline)) void floats_from(const uint8_t* tile, __m512i* quads) const {
    decode_quads<BITS>(tile, quads);
    if constexpr (!FLOAT_TABLE) center(quads);
  }
  TORCHCOINFER_AVX512 __attribute__((always_inline)) void pairs_from(const uint8_t* tile, __m512i* quads) const {
    decode_quads<BITS>(tile, quads);
    if constexpr (!PAIR_TABLE) center(quads);
  }

  // Values of byte i of each lane.
  template <int I>
  TORCHCOINFER_AVX512 __attribute__((always_inline)) __m512 to_float(__m512i quad) const {
    if constexpr (!FLOAT_TABLE) return _mm512_cvtepi32_ps(signed_byte<I>(quad));
    const __m512i index = I == 0 ? quad : _mm512_srli_epi32(quad, 8 * I);
    if constexpr (BITS <= 4) return _mm512_permutexvar_ps(index, floats[0]);
    return _mm512_permutex2var_ps(floats[0], index, floats[1]);
  }

  // bfloat16 pairs of bytes H (low half of the lane) and H + 2 (high half).
  template <int H>
  TORCHCOINFER_AVX512 __attribute__((always_inline)) __m512i to_pairs(__m512i quad) const {
    if constexpr (!PAIR_TABLE) {
      const __m512i low = _mm512_castps_si512(_mm512_cvtepi32_ps(signed_byte<H>(quad)));
      const __m512i high = _mm512_castps_si512(_mm512_cvtepi32_ps(signed_byte<H + 2>(quad)));
      return merge(_mm512_srli_epi32(low, 16), high, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
    }
    const __m512i index = H == 0 ? quad : _mm512_srli_epi16(quad, 8);
    if constexpr (BITS <= 5) return _mm512_permutexvar_epi16(index, pairs[0]);
    return _mm512_permutex2var_epi16(pairs[0], index, pairs[1]);
  }

 private:
  TORCHCOINFER_AVX512 __attribute__((always_inline)) static void center(__m512i* quads) {
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; ++q) quads[q] = _mm512_sub_epi8(quads[q], bytes_of(CENTER));
  }
  template <int I>
  TORCHCOINFER_AVX512 __attribute__((always_inline)) static __m512i signed_byte(__m512i quad) {
    const __m512i moved = I == 3 ? quad : _mm512_slli_epi32(quad, 24 - 8 * I);
    return _mm512_srai_epi32(moved, 24);
  }
};

// 16 values of a plain array of floats in `dtype`.
TORCHCOINFER_AVX512_INLINE __m512 load_floats(const void* data, Dtype dtype, int64_t index) {
  if (dtype == Dtype::float32) return _mm512_loadu_ps(static_cast<const float*>(data) + index);
  const __m256i halves = _mm256_loadu_si256(
      reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(data) + index));
  if (dtype == Dtype::float16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Scales of a block and group, and their zero points (integers; 2^(b-1) where there are none).
TORCHCOINFER_AVX512_INLINE __m512 load_scales(const QuantMatrix& w, int64_t place) {
  return load_floats(w.scales, w.scale_dtype, place * BLOCK_N);
}
TORCHCOINFER_AVX512_INLINE __m512i load_zeros(const QuantMatrix& w, int64_t place) {
  if (!w.zeros) return _mm512_set1_epi32(implicit_zero(w.bits));
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zeros + place * BLOCK_N)));
}

}  // namespace torchcoinfer::avx512
