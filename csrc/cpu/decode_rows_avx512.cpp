// Dense tiles as plain bfloat16 rows (decoded.h): a tile's eight quads are turned so that each vector holds 32 codes of
// two rows n, which become floats, are scaled and rounded. AVX-512 BF16.

#include "cpu/decoded.h"

#if TORCHCOINFER_X86

#include <algorithm>
#include <cstring>

#include "cpu/decode_avx512.h"

namespace torchcoinfer {
namespace {

using namespace avx512;

constexpr int64_t WINDOW_TILES = 16;
constexpr int64_t WINDOW_COLUMNS = WINDOW_TILES * TILE_K;
constexpr int64_t PAGE_BYTES = 4096;  // addresses so far apart share their lines of the first cache

// Rows of whole pages: more of them than the cache can hold lines of one address. Then a window of the 16 rows is put
// together first, and written row by row.
bool rows_collide(int64_t K) {
  return K * static_cast<int64_t>(sizeof(uint16_t)) % PAGE_BYTES == 0;
}

// quads[q], lane n: k = 4q .. 4q + 3 of row n  ->  rows[i]: the 32 codes of row i in the low half, of row i + 8 in the
// high one.
TORCHCOINFER_AVX512_INLINE void turn_quads(const __m512i (&quads)[8], __m512i (&rows)[8]) {
  __m512i twos[8], fours[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    twos[i] = _mm512_unpacklo_epi32(quads[i], quads[i + 1]);      // rows 0 1 of each four, two quads
    twos[i + 1] = _mm512_unpackhi_epi32(quads[i], quads[i + 1]);  // rows 2 3
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm512_unpacklo_epi64(twos[i + j], twos[i + j + 2]);      // row 2j of each four, four quads
      fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(twos[i + j], twos[i + j + 2]);  // row 2j + 1
    }
  // fours[r]: lane of 128 bits f: row 4f + r, k 0 .. 15; fours[4 + r]: k 16 .. 31
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    const __m512i even = _mm512_shuffle_i64x2(fours[r], fours[4 + r], 0x88);  // rows r, 8 + r; again, upper k
    const __m512i odd = _mm512_shuffle_i64x2(fours[r], fours[4 + r], 0xdd);   // rows 4 + r, 12 + r
    rows[r] = _mm512_shuffle_i64x2(even, even, 0xd8);
    rows[4 + r] = _mm512_shuffle_i64x2(odd, odd, 0xd8);
  }
}

TORCHCOINFER_AVX512_INLINE __m512i to_values(__m512 low, __m512 high, __m512 scale, __m512 offset) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_sub_ps(high, offset), scale),
                                      _mm512_mul_ps(_mm512_sub_ps(low, offset), scale));
}

// What the codes of one row and group stand for, in bfloat16: up to 6 bits a table, else arithmetic.
template <int BITS>
struct RowValues {
  static constexpr int TABLES = BITS <= 5 ? 1 : BITS == 6 ? 2 : 0;  // of 32 values
  __m512i tables[TABLES ? TABLES : 1];
  __m512 scale, offset;

  TORCHCOINFER_AVX512 __attribute__((always_inline)) void set(float row_scale, float row_offset) {
    scale = _mm512_set1_ps(row_scale), offset = _mm512_set1_ps(row_offset);
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 next = _mm512_set1_ps(16);
    if constexpr (TABLES > 0) tables[0] = to_values(codes, _mm512_add_ps(codes, next), scale, offset);
    if constexpr (TABLES > 1) {
      const __m512 upper = _mm512_add_ps(codes, _mm512_set1_ps(32));
      tables[1] = to_values(upper, _mm512_add_ps(upper, next), scale, offset);
    }
  }
  TORCHCOINFER_AVX512 __attribute__((always_inline)) __m512i of(__m256i codes) const {
    const __m512i index = _mm512_cvtepu8_epi16(codes);
    if constexpr (TABLES == 1) return _mm512_permutexvar_epi16(index, tables[0]);
    if constexpr (TABLES == 2) return _mm512_permutex2var_epi16(tables[0], index, tables[1]);
    return to_values(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_castsi256_si128(codes))),
                     _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_extracti128_si256(codes, 1))), scale, offset);
  }
};

template <int BITS>
TORCHCOINFER_AVX512 void decode_block(const QuantMatrix& w, int64_t block, int64_t rows, uint16_t* out) {
  const int64_t tiles = ceil_div(w.K, TILE_K), group_tiles = w.group_size ? w.group_size / TILE_K : tiles;
  const int64_t groups = group_count(w.K, w.group_size);
  const uint8_t* tile = w.packed + block * tiles * tile_bytes(BITS);
  const bool collide = rows_collide(w.K);
  alignas(64) uint16_t window[BLOCK_N * WINDOW_COLUMNS];
  RowValues<BITS> values[BLOCK_N];
  for (int64_t t = 0; t < tiles; ++t, tile += tile_bytes(BITS)) {
    if (t % group_tiles == 0) {
      const int64_t place = block * groups + t / group_tiles;
      alignas(64) float scales[BLOCK_N], offsets[BLOCK_N];
      _mm512_store_ps(scales, load_scales(w, place));
      _mm512_store_ps(offsets, _mm512_cvtepi32_ps(load_zeros(w, place)));
      for (int n = 0; n < BLOCK_N; ++n) values[n].set(scales[n], offsets[n]);
    }
    __m512i quads[8], turned[8];
    decode_quads<BITS>(tile, quads);
    turn_quads(quads, turned);
    const int64_t left = w.K - t * TILE_K;
    const __mmask32 mask = left >= TILE_K ? 0xffffffffu : (1u << left) - 1;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      uint16_t* row = collide ? window + i * WINDOW_COLUMNS + t % WINDOW_TILES * TILE_K : out + i * w.K + t * TILE_K;
      if (i < rows) _mm512_mask_storeu_epi16(row, mask, values[i].of(_mm512_castsi512_si256(turned[i])));
      if (i + 8 < rows)
        _mm512_mask_storeu_epi16(row + 8 * (collide ? WINDOW_COLUMNS : w.K), mask,
                                 values[i + 8].of(_mm512_extracti64x4_epi64(turned[i], 1)));
    }
    if (collide && (t + 1) % WINDOW_TILES == 0)  // whole windows: K is a multiple of a window's columns
      for (int64_t n = 0; n < rows; ++n)
        std::memcpy(out + n * w.K + (t + 1) * TILE_K - WINDOW_COLUMNS, window + n * WINDOW_COLUMNS,
                    WINDOW_COLUMNS * sizeof *window);
  }
}

using Decode = void (*)(const QuantMatrix&, int64_t, int64_t, uint16_t*);

Decode decode_of(int bits) {
  if (bits == 2) return decode_block<2>;
  if (bits == 3) return decode_block<3>;
  if (bits == 4) return decode_block<4>;
  if (bits == 5) return decode_block<5>;
  return bits == 6 ? decode_block<6> : decode_block<8>;
}

}  // namespace

void decode_rows(const QuantMatrix& w, int64_t begin, int64_t end, uint16_t* out) {
  const Decode decode = decode_of(w.bits);
  for (int64_t block = begin; block < end; ++block, out += BLOCK_N * w.K)
    decode(w, block, std::min<int64_t>(BLOCK_N, w.N - block * BLOCK_N), out);
}

}  // namespace torchcoinfer

#endif
