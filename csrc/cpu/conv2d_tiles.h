// Register tiles of the convolution: eight rows of W times up to 48 positions, over one decoded segment. AVX-512.

#pragma once

#include "cpu/conv2d_panels.h"

namespace torchcoinfer::avx512 {

constexpr int HALF = BLOCK_N / 2;           // rows of W in a register tile

// sum += x * w as an instruction: from the intrinsics g++ 12 makes copies and spills of the sums in the inner loop.
TORCHCOINFER_AVX512_INLINE void multiply_add(__m512i x, __m512i w, __m512& sum, const FloatKind*) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
}
TORCHCOINFER_AVX512_INLINE void multiply_add(__m512i x, __m512i w, __m512& sum, const PairKind*) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
}
TORCHCOINFER_AVX512_INLINE void multiply_add(__m512i x, __m512i w, __m512i& sum, const CodeKind*) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
}

// One segment of one block of W.
struct BlockSegment {
  int32_t* lanes;                 // [lanes][16]
  alignas(64) int32_t starts[BLOCK_N];  // -128 * sum of codes: what 128 in the codes of x adds
  alignas(64) int32_t offsets[BLOCK_N];  // implicit minus stored zero point
  alignas(64) float scales[BLOCK_N];
  bool zeros;
};

template <int BITS>
TORCHCOINFER_AVX512_INLINE void decode_tile(const Values<BITS>& values, const uint8_t* tile, int32_t* lanes,
                                            const FloatKind*) {
  __m512i quads[QUADS];
  values.floats_from(tile, quads);
#pragma GCC unroll 8
  for (int q = 0; q < QUADS; ++q) {
    float* out = reinterpret_cast<float*>(lanes) + 4 * q * BLOCK_N;
    _mm512_store_ps(out, values.template to_float<0>(quads[q]));
    _mm512_store_ps(out + BLOCK_N, values.template to_float<1>(quads[q]));
    _mm512_store_ps(out + 2 * BLOCK_N, values.template to_float<2>(quads[q]));
    _mm512_store_ps(out + 3 * BLOCK_N, values.template to_float<3>(quads[q]));
  }
}
template <int BITS>
TORCHCOINFER_AVX512_INLINE void decode_tile(const Values<BITS>& values, const uint8_t* tile, int32_t* lanes,
                                            const PairKind*) {
  __m512i quads[QUADS];
  values.pairs_from(tile, quads);
#pragma GCC unroll 8
  for (int q = 0; q < QUADS; ++q) {
    _mm512_store_si512(lanes + 2 * q * BLOCK_N, values.template to_pairs<0>(quads[q]));
    _mm512_store_si512(lanes + (2 * q + 1) * BLOCK_N, values.template to_pairs<1>(quads[q]));
  }
}
template <int BITS>
TORCHCOINFER_AVX512_INLINE void decode_tile(const Values<BITS>&, const uint8_t* tile, int32_t* lanes,
                                            const CodeKind*) {
#pragma GCC unroll 8
  for (int q = 0; q < QUADS; ++q)
    _mm512_store_si512(lanes + q * BLOCK_N,
                       _mm512_sub_epi8(decode_quad<BITS>(tile, q), bytes_of(implicit_zero(BITS))));
}

template <int BITS, typename Kind>
TORCHCOINFER_AVX512 void decode_segment(const QuantMatrix& w, const Segments& segments, int64_t block, int64_t s,
                                        BlockSegment* out) {
  const Values<BITS> values;
  const int64_t count = segments.end(s) - segments.begin(s);
  const uint8_t* tiles = w.packed + (block * segments.tiles + segments.begin(s)) * tile_bytes(BITS);
  for (int64_t t = 0; t < count; ++t)
    decode_tile(values, tiles + t * tile_bytes(BITS), out->lanes + t * TILE_K / Kind::K_EACH * BLOCK_N,
                static_cast<const Kind*>(nullptr));
  __m512i sums = _mm512_setzero_si512();
  if constexpr (Kind::K_EACH == 4)
    for (int64_t i = 0; i < count * QUADS; ++i)
      sums = _mm512_dpbusd_epi32(sums, bytes_of(1), _mm512_load_si512(out->lanes + i * BLOCK_N));
  _mm512_store_si512(out->starts, _mm512_mullo_epi32(sums, _mm512_set1_epi32(-128)));
  const int64_t place = block * segments.groups() + segments.group(s);
  _mm512_store_si512(out->offsets, _mm512_sub_epi32(_mm512_set1_epi32(implicit_zero(BITS)), load_zeros(w, place)));
  _mm512_store_ps(out->scales, load_scales(w, place));
  out->zeros = w.zeros != nullptr;
}

// What a register tile starts from: codes exactly minus what their zero points add.
template <int VECTORS>
TORCHCOINFER_AVX512_INLINE void start(const BlockSegment& w, int n, const int32_t* sums, __m512i* parts) {
#pragma GCC unroll 3
  for (int v = 0; v < VECTORS; ++v) {
    parts[v] = _mm512_set1_epi32(w.starts[n]);
    if (!w.zeros) continue;
    const __m512i share = _mm512_mullo_epi32(_mm512_set1_epi32(w.offsets[n]), _mm512_loadu_si512(sums + 16 * v));
    parts[v] = _mm512_add_epi32(parts[v], share);
  }
}
template <int VECTORS>
TORCHCOINFER_AVX512_INLINE void start(const BlockSegment& w, int n, const int32_t* sums, __m512* parts) {
#pragma GCC unroll 3
  for (int v = 0; v < VECTORS; ++v) {
    parts[v] = _mm512_setzero_ps();
    if (!w.zeros) continue;
    const __m512 offset = _mm512_set1_ps(static_cast<float>(w.offsets[n]));
    parts[v] = _mm512_mul_ps(offset, _mm512_castsi512_ps(_mm512_loadu_si512(sums + 16 * v)));
  }
}

TORCHCOINFER_AVX512_INLINE __m512 to_floats(__m512i part) {
  return _mm512_cvtepi32_ps(part);
}
TORCHCOINFER_AVX512_INLINE __m512 to_floats(__m512 part) {
  return part;
}

// Rows [first, first + 8) of the block times one tile of positions: sums [16][48], set if `fresh`, else added to.
template <typename Kind, int VECTORS>
TORCHCOINFER_AVX512 void multiply_half(const BlockSegment& w, int first, const int32_t* panel, int64_t lanes,
                                       const int32_t* panel_sums, bool fresh, float* sums) {
  typename Kind::Sum parts[HALF][VECTORS];
#pragma GCC unroll 8
  for (int n = 0; n < HALF; ++n) start<VECTORS>(w, first + n, panel_sums, parts[n]);
  const int32_t* weights = w.lanes + first;
  for (int64_t i = 0; i < lanes; ++i, panel += TILE_POSITIONS, weights += BLOCK_N) {
    __m512i x[VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) x[v] = _mm512_loadu_si512(panel + 16 * v);
#pragma GCC unroll 8
    for (int n = 0; n < HALF; ++n) {
      const __m512i lane = _mm512_set1_epi32(weights[n]);
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) multiply_add(x[v], lane, parts[n][v], static_cast<const Kind*>(nullptr));
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < HALF; ++n) {
    const __m512 scale = _mm512_set1_ps(w.scales[first + n]);
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) {
      float* place = sums + (first + n) * TILE_POSITIONS + 16 * v;
      const __m512 before = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(place);
      _mm512_storeu_ps(place, _mm512_fmadd_ps(scale, to_floats(parts[n][v]), before));
    }
  }
}

template <typename Kind>
void multiply_tile(const BlockSegment& w, int vectors, const int32_t* panel, int64_t lanes, const int32_t* panel_sums,
                   bool fresh, float* sums) {
  const auto half = vectors == 1   ? multiply_half<Kind, 1>
                    : vectors == 2 ? multiply_half<Kind, 2>
                                   : multiply_half<Kind, 3>;
  half(w, 0, panel, lanes, panel_sums, fresh, sums);
  half(w, HALF, panel, lanes, panel_sums, fresh, sums);
}

}  // namespace torchcoinfer::avx512
