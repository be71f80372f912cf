// One row tile of x: weights stream once and are decoded in registers, lane = n. AVX-512.

#include "cpu/isa.h"

#if TORCHCOINFER_X86

#include "cpu/decode_avx512.h"
#include "cpu/digits_avx512.h"
#include "cpu/finish_avx512.h"
#include "cpu/store_avx512.h"

namespace torchcoinfer::avx512 {
namespace {

// Bytes of each block's weights that are fetched ahead.
constexpr int64_t ahead_bytes(int blocks) {
  return blocks == 1 ? 4096 : 2048;
}

// Blocks that pass over x together: streams of weights, and chains of additions that hide a latency.
constexpr int blocks_together(int rows) {
  return rows <= 5 ? 4 : rows <= RowTiles::MOST ? 2 : 1;
}
// Sums that the quads of a block and digit take in turn.
constexpr int chains(int rows) {
  return rows == 1 ? 2 : 1;
}

// parts += the digits' products with the tiles of one segment. x: [lanes][ROWS], ROWS counts digits as rows.
template <int BITS, int ROWS, int BLOCKS, int CHAINS>
TORCHCOINFER_AVX512_INLINE void add_tiles(const uint8_t* const* tiles, int64_t count, const int32_t* x,
                                          __m512i (*parts)[ROWS][CHAINS]) {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t offset = t * tile_bytes(BITS);
#pragma GCC unroll 4
    for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 8
      for (int line = 0; line < BITS; ++line)
        _mm_prefetch(reinterpret_cast<const char*>(tiles[b] + offset + ahead_bytes(BLOCKS) + line * VECTOR_BYTES), _MM_HINT_T0);
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; ++q, x += ROWS) {
      __m512i quads[BLOCKS];
#pragma GCC unroll 4
      for (int b = 0; b < BLOCKS; ++b) quads[b] = decode_quad<BITS>(tiles[b] + offset, q);
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
        const __m512i lane = _mm512_set1_epi32(x[m]);
#pragma GCC unroll 4
        for (int b = 0; b < BLOCKS; ++b) add_products(quads[b], lane, parts[b][m][q % CHAINS]);
      }
    }
  }
}

// One row tile times the blocks first + b * step.
template <int BITS, int DIGITS, int HEIGHT, int BLOCKS>
TORCHCOINFER_AVX512 void gemv_blocks(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t first,
                                     int64_t step) {
  constexpr int ROWS = HEIGHT * DIGITS, CHAINS = chains(ROWS);
  const Segments segments(w.K, w.group_size);
  alignas(64) float sums[BLOCKS][HEIGHT][BLOCK_N] = {};
  const uint8_t* tiles[BLOCKS];
  for (int b = 0; b < BLOCKS; ++b) tiles[b] = w.packed + (first + b * step) * segments.tiles * tile_bytes(BITS);
  for (int64_t s = 0; s < segments.count; ++s) {
    const int32_t* starts = x.starts + s * ROWS;
    const float* scales = DIGITS == 1 ? nullptr : x.scales + s * HEIGHT;
    __m512i parts[BLOCKS][ROWS][CHAINS];
#pragma GCC unroll 4
    for (int b = 0; b < BLOCKS; ++b) {
      const int64_t place = (first + b * step) * segments.groups() + segments.group(s);
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
        parts[b][m][0] = DIGITS > 1 && m % DIGITS == 0 ? _mm512_setzero_si512() : start(w, place, starts[m]);
        if (CHAINS > 1) parts[b][m][1] = _mm512_setzero_si512();
      }
    }
    const int64_t count = segments.end(s) - segments.begin(s);
    add_tiles<BITS, ROWS, BLOCKS, CHAINS>(tiles, count, x.lanes + segments.begin(s) * QUADS * ROWS, parts);
#pragma GCC unroll 4
    for (int b = 0; b < BLOCKS; ++b) {
      tiles[b] += count * tile_bytes(BITS);
      const __m512 scale = load_scales(w, (first + b * step) * segments.groups() + segments.group(s));
#pragma GCC unroll 16
      for (int m = 0; m < HEIGHT; ++m) {
        __m512i digits[DIGITS];
#pragma GCC unroll 3
        for (int d = 0; d < DIGITS; ++d) {
          digits[d] = parts[b][m * DIGITS + d][0];
          if (CHAINS > 1) digits[d] = _mm512_add_epi32(digits[d], parts[b][m * DIGITS + d][1]);
        }
        add_segment<DIGITS>(digits, scale, DIGITS == 1 ? 1.f : scales[m], sums[b][m]);
      }
    }
  }
  for (int b = 0; b < BLOCKS; ++b)
    for (int m = 0; m < HEIGHT; ++m) store_scaled<DIGITS>(sums[b][m], x, m, out, m, first + b * step);
}

// The blocks are cut into as many runs as pass together, so that each stream of weights is one run of memory.
template <int BITS, int DIGITS, int HEIGHT>
void gemv_tile(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t begin, int64_t end) {
  constexpr int TOGETHER = blocks_together(HEIGHT * DIGITS);
  const int64_t run = (end - begin) / TOGETHER;
  for (int64_t i = 0; i < run; ++i) gemv_blocks<BITS, DIGITS, HEIGHT, TOGETHER>(w, x, out, begin + i, run);
  for (int64_t block = begin + run * TOGETHER; block < end; ++block)
    gemv_blocks<BITS, DIGITS, HEIGHT, 1>(w, x, out, block, 1);
}

using Kernel = void (*)(const QuantMatrix&, const DigitRows&, const Output&, int64_t, int64_t);

template <int BITS, int DIGITS, int HEIGHT = DigitTiles::ALONE / DIGITS>
Kernel kernel_of_height(int64_t height) {
  if (height == HEIGHT) return gemv_tile<BITS, DIGITS, HEIGHT>;
  if constexpr (HEIGHT > 1) return kernel_of_height<BITS, DIGITS, HEIGHT - 1>(height);
  return nullptr;
}

template <int BITS>
Kernel kernel_of(const DigitRows& x) {
  if (x.digits == 1) return kernel_of_height<BITS, 1>(x.rows);
  if (x.digits == 2) return kernel_of_height<BITS, 2>(x.rows);
  return kernel_of_height<BITS, 3>(x.rows);
}

}  // namespace

void gemv_digits(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t begin, int64_t end) {
  const Kernel kernel = w.bits == 2   ? kernel_of<2>(x)
                        : w.bits == 3 ? kernel_of<3>(x)
                        : w.bits == 4 ? kernel_of<4>(x)
                        : w.bits == 5 ? kernel_of<5>(x)
                        : w.bits == 6 ? kernel_of<6>(x)
                                      : kernel_of<8>(x);
  kernel(w, x, out, begin, end);
}

}  // namespace torchcoinfer::avx512

#endif
