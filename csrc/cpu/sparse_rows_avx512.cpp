// Float survivors as plain bfloat16 rows (decoded.h): blocks are spread window by window, and the four columns that each
// group holds of a row are put side by side. AVX-512.

#include "cpu/decoded.h"

#if TORCHCOINFER_X86

#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/sparse_pairs_avx512.h"
#include "cpu/sparse_stream.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int64_t ROWS_TOGETHER = 8;                                // of a half
constexpr int64_t WORDS_TOGETHER = 8;                               // groups, of four columns each
constexpr int64_t COLUMNS = WORDS_TOGETHER * GROUP_K;               // of a vector of a row

// v[i], 8 quadwords each, is turned on its diagonal.
TORCHCOINFER_AVX512_INLINE void transpose_quadwords(__m512i (&v)[8]) {
  __m512i pairs[8], fours[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_unpacklo_epi64(v[i], v[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi64(v[i], v[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      fours[i + j] = _mm512_shuffle_i64x2(pairs[i + j], pairs[i + j + 2], 0x88);
      fours[i + j + 2] = _mm512_shuffle_i64x2(pairs[i + j], pairs[i + j + 2], 0xdd);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    v[j] = _mm512_shuffle_i64x2(fours[j], fours[j + 4], 0x88);
    v[j + 4] = _mm512_shuffle_i64x2(fours[j], fours[j + 4], 0xdd);
  }
}

// A window's places to columns [column, K) of up to 16 rows of `out`, eight rows at a time: rows of whole pages share
// their lines of the first cache, which has room for eight of them but not for sixteen.
TORCHCOINFER_AVX512 void put_window(const uint16_t* places, int64_t words, int64_t column, int64_t K, int64_t rows,
                                    uint16_t* out) {
  for (int h = 0; h < HALVES && h * ROWS_TOGETHER < rows; ++h)
    for (int64_t w = 0; w < words; w += WORDS_TOGETHER) {
      const int64_t first = column + w * GROUP_K, left = K - first;
      const __mmask32 mask = left >= COLUMNS ? 0xffffffffu : (1u << std::max<int64_t>(left, 0)) - 1;
      __m512i v[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) v[i] = _mm512_load_si512(places + (w + i) * GROUP_PLACES + h * HALF);
      transpose_quadwords(v);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j)
        if (h * ROWS_TOGETHER + j < rows)
          _mm512_mask_storeu_epi16(out + (h * ROWS_TOGETHER + j) * K + first, mask, v[j]);
    }
}

}  // namespace

bool decode_float_rows(const SparseMatrix& w, int64_t begin, int64_t end, uint16_t* out) {
  const Buffer<StreamScratch> scratch(1);
  const Buffer<uint16_t> rounded(WINDOW_SURVIVORS + SURVIVOR_SLACK), places(WINDOW_SURVIVORS);
  const bool stored_so = w.value_dtype == Dtype::bfloat16;
  const auto spread = stored_so ? spread_window<true> : spread_window<false>;
  for (int64_t block = begin; block < end; ++block, out += BLOCK_N * w.K) {
    SurvivorStream stream(w, spread_of(Isa::avx512), block, scratch.get());
    for (int64_t t = 0; t < w.tiles(); t += WINDOW_TILES) {
      const int64_t tiles = std::min(WINDOW_TILES, w.tiles() - t), words = tiles * TILE_GROUPS;
      if (!stream.open(t, tiles)) return false;
      const void* survivors = stream.floats();
      if (!stored_so) round_survivors(survivors, w.value_dtype, stream.count(), rounded.get());
      spread(stored_so ? static_cast<const uint16_t*>(survivors) : rounded.get(), stream.masks(), words, places.get());
      put_window(places.get(), words, t * TILE_K, w.K, std::min<int64_t>(BLOCK_N, w.N - block * BLOCK_N), out);
    }
    if (!stream.complete()) return false;
  }
  return true;
}

}  // namespace torchcoinfer::avx512

#endif
