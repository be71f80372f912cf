// Up to four rows of x: weights stream once and are decoded in registers, lane = n. AVX-512.

#include "cpu/isa.h"

#if TORCHCOINFER_X86

#include <cstring>

#include "cpu/gemm_avx512.h"
#include "cpu/store_avx512.h"

namespace torchcoinfer::avx512 {
namespace {

// Chains of additions a row and block: enough to hide the latency of one, few enough for the registers.
template <int ROWS>
constexpr int CHAINS = ROWS == 1 ? 4 : 2;

template <typename T>
TORCHCOINFER_AVX512_INLINE int load_four_bytes(const T* data) {
  int bits;
  std::memcpy(&bits, data, sizeof bits);
  return bits;
}

// One tile of `BLOCKS` blocks times ROWS rows. `tiles[b]`: the tile of block b; x: the tile's first column of row 0.
template <int BITS, int ROWS, int BLOCKS>
TORCHCOINFER_AVX512_INLINE void add_tile(const Values<BITS>& values, const uint8_t* const* tiles, const FloatRows& x,
                                         int64_t k, __m512 (*sums)[ROWS][CHAINS<ROWS>]) {
#pragma GCC unroll 2
  for (int b = 0; b < BLOCKS; ++b) {
    __m512i quads[QUADS];
    values.floats_from(tiles[b], quads);
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; ++q) {
      const __m512 four[4] = {values.template to_float<0>(quads[q]), values.template to_float<1>(quads[q]),
                              values.template to_float<2>(quads[q]), values.template to_float<3>(quads[q])};
#pragma GCC unroll 4
      for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          __m512& sum = sums[b][m][i % CHAINS<ROWS>];
          sum = _mm512_fmadd_ps(four[i], _mm512_set1_ps(x.values[m * x.stride + k + 4 * q + i]), sum);
        }
    }
  }
}

template <int BITS, int ROWS, int BLOCKS>
TORCHCOINFER_AVX512_INLINE void add_tile(const Values<BITS>& values, const uint8_t* const* tiles, const PairRows& x,
                                         int64_t k, __m512 (*sums)[ROWS][CHAINS<ROWS>]) {
#pragma GCC unroll 2
  for (int b = 0; b < BLOCKS; ++b) {
    __m512i quads[QUADS];
    values.pairs_from(tiles[b], quads);
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; ++q) {
      const __m512i two[2] = {values.template to_pairs<0>(quads[q]), values.template to_pairs<1>(quads[q])};
#pragma GCC unroll 4
      for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          __m512& sum = sums[b][m][(2 * q + i) % CHAINS<ROWS>];
          const __m512i pair = _mm512_set1_epi32(load_four_bytes(x.values + m * x.stride + k + 4 * q + 2 * i));
          sum = _mm512_dpbf16_ps(sum, (__m512bh)two[i], (__m512bh)pair);
        }
    }
  }
}

// sums += scale * (part - offset * sum of x), the segment's end.
template <int BITS, int ROWS, int BLOCKS, typename Rows>
TORCHCOINFER_AVX512_INLINE void add_segment(const QuantMatrix& w, const Rows& x, const Segments& segments, int64_t s,
                                            int64_t block, __m512 (*parts)[ROWS][CHAINS<ROWS>],
                                            __m512 (*sums)[ROWS]) {
#pragma GCC unroll 2
  for (int b = 0; b < BLOCKS; ++b) {
    const int64_t place = (block + b) * segments.groups() + segments.group(s);
    const __m512 scale = load_scales(w, place);
    const __m512 offset =
        _mm512_cvtepi32_ps(_mm512_sub_epi32(load_zeros(w, place), _mm512_set1_epi32(implicit_zero(BITS))));
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) {
      __m512 part = parts[b][m][0];
#pragma GCC unroll 4
      for (int c = 1; c < CHAINS<ROWS>; ++c) part = _mm512_add_ps(part, parts[b][m][c]);
      if (w.zeros) part = _mm512_fnmadd_ps(offset, _mm512_set1_ps(x.sums[m * segments.count + s]), part);
      sums[b][m] = _mm512_fmadd_ps(scale, part, sums[b][m]);
    }
  }
}

template <int BITS, int ROWS, int BLOCKS, typename Rows>
TORCHCOINFER_AVX512 void gemv_blocks(const QuantMatrix& w, const Rows& x, const Output& out, int64_t block) {
  const Segments segments(w.K, w.group_size);
  const Values<BITS> values;
  const uint8_t* tiles[BLOCKS];
  __m512 sums[BLOCKS][ROWS];
#pragma GCC unroll 2
  for (int b = 0; b < BLOCKS; ++b) {
    tiles[b] = w.packed + (block + b) * segments.tiles * tile_bytes(BITS);
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) sums[b][m] = _mm512_setzero_ps();
  }
  for (int64_t s = 0; s < segments.count; ++s) {
    __m512 parts[BLOCKS][ROWS][CHAINS<ROWS>];
#pragma GCC unroll 2
    for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 4
      for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS<ROWS>; ++c) parts[b][m][c] = _mm512_setzero_ps();
    for (int64_t t = segments.begin(s); t < segments.end(s); ++t) {
      add_tile<BITS, ROWS, BLOCKS>(values, tiles, x, t * TILE_K, parts);
#pragma GCC unroll 2
      for (int b = 0; b < BLOCKS; ++b) tiles[b] += tile_bytes(BITS);
    }
    add_segment<BITS, ROWS, BLOCKS>(w, x, segments, s, block, parts, sums);
  }
#pragma GCC unroll 2
  for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) store_sums(sums[b][m], out, m, block + b);
}

// int8 activations: exact int32 sums a segment.
template <int BITS, int ROWS, int BLOCKS>
TORCHCOINFER_AVX512 void gemv_blocks(const QuantMatrix& w, const CodeRows& x, const Output& out, int64_t block) {
  const Segments segments(w.K, w.group_size);
  __m512 sums[BLOCKS][ROWS];
#pragma GCC unroll 2
  for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) sums[b][m] = _mm512_setzero_ps();
  for (int64_t s = 0; s < segments.count; ++s) {
    __m512i parts[BLOCKS][ROWS][CHAINS<ROWS>];
#pragma GCC unroll 2
    for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 4
      for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS<ROWS>; ++c) parts[b][m][c] = _mm512_setzero_si512();
    for (int64_t t = segments.begin(s); t < segments.end(s); ++t) {
#pragma GCC unroll 2
      for (int b = 0; b < BLOCKS; ++b) {
        __m512i quads[QUADS];
        decode_quads<BITS>(w.packed + ((block + b) * segments.tiles + t) * tile_bytes(BITS), quads);
#pragma GCC unroll 8
        for (int q = 0; q < QUADS; ++q)
#pragma GCC unroll 4
          for (int m = 0; m < ROWS; ++m) {
            __m512i& part = parts[b][m][q % CHAINS<ROWS>];
            const int four = load_four_bytes(x.values + m * x.stride + t * TILE_K + 4 * q);
            part = _mm512_dpbusd_epi32(part, quads[q], _mm512_set1_epi32(four));
          }
      }
    }
#pragma GCC unroll 2
    for (int b = 0; b < BLOCKS; ++b) {
      const int64_t place = (block + b) * segments.groups() + segments.group(s);
      const __m512 scale = load_scales(w, place);
      const __m512i zero = load_zeros(w, place);
#pragma GCC unroll 4
      for (int m = 0; m < ROWS; ++m) {
        __m512i part = parts[b][m][0];
#pragma GCC unroll 4
        for (int c = 1; c < CHAINS<ROWS>; ++c) part = _mm512_add_epi32(part, parts[b][m][c]);
        part = _mm512_sub_epi32(part, _mm512_mullo_epi32(zero, _mm512_set1_epi32(x.sums[m * segments.count + s])));
        sums[b][m] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(part), sums[b][m]);
      }
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m)
      store_sums(_mm512_mul_ps(sums[b][m], _mm512_set1_ps(x.scales[m])), out, m, block + b);
}

template <int BITS, int ROWS, typename Rows>
void gemv_rows(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end) {
  int64_t block = begin;
  for (; block + 2 <= end; block += 2) gemv_blocks<BITS, ROWS, 2>(w, x, out, block);
  if (block < end) gemv_blocks<BITS, ROWS, 1>(w, x, out, block);
}

template <int BITS, typename Rows>
void gemv_bits(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end) {
  if (x.rows == 1) gemv_rows<BITS, 1>(w, x, out, begin, end);
  if (x.rows == 2) gemv_rows<BITS, 2>(w, x, out, begin, end);
  if (x.rows == 3) gemv_rows<BITS, 3>(w, x, out, begin, end);
  if (x.rows == 4) gemv_rows<BITS, 4>(w, x, out, begin, end);
}

}  // namespace

template <typename Rows>
void gemv(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end) {
  if (w.bits == 2) gemv_bits<2>(w, x, out, begin, end);
  if (w.bits == 3) gemv_bits<3>(w, x, out, begin, end);
  if (w.bits == 4) gemv_bits<4>(w, x, out, begin, end);
  if (w.bits == 5) gemv_bits<5>(w, x, out, begin, end);
  if (w.bits == 6) gemv_bits<6>(w, x, out, begin, end);
  if (w.bits == 8) gemv_bits<8>(w, x, out, begin, end);
}

template void gemv(const QuantMatrix&, const FloatRows&, const Output&, int64_t, int64_t);
template void gemv(const QuantMatrix&, const PairRows&, const Output&, int64_t, int64_t);
template void gemv(const QuantMatrix&, const CodeRows&, const Output&, int64_t, int64_t);

}  // namespace torchcoinfer::avx512

#endif
