// Quantized 2:4 survivors times one row tile of digits (digits_avx512.h). Nothing is spread: the four survivors that a
// row n has in two neighboring groups fill its lane, and a shuffle by their indices picks the columns of x that they
// meet. As vpdpbusd wants one operand unsigned, x + 128 is multiplied with code - zero point, and 128 times the sum of
// the latter is taken off. AVX-512 VBMI and VNNI.

#include "cpu/sparse_parts.h"

#if TORCHCOINFER_X86

#include <algorithm>
#include <atomic>

#include "cpu/buffer.h"
#include "cpu/finish_avx512.h"
#include "cpu/sparse_chunk_avx512.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int64_t TILES_AHEAD = 32;   // of indices and survivors that are fetched
constexpr int X_CENTER = 128;         // makes int8 digits unsigned

// x with the lanes of two groups side by side: [KT * 4][ROWS][2], digits + 128.
template <int ROWS>
TORCHCOINFER_AVX512 void pair_lanes(const int32_t* lanes, int64_t chunks, int32_t* pairs) {
  constexpr int COUNT = 2 * ROWS, FIRST = std::min(COUNT, 16), REST = COUNT - FIRST;
  alignas(64) int32_t order[32] = {};
  for (int i = 0; i < COUNT; ++i) order[i] = i % 2 * ROWS + i / 2;
  const __m512i low_order = _mm512_load_si512(order), high_order = _mm512_load_si512(order + 16);
  const auto low = static_cast<__mmask16>((1u << FIRST) - 1), high = static_cast<__mmask16>((1u << REST) - 1);
  const __m512i center = bytes_of(X_CENTER);
  for (int64_t c = 0; c < chunks; ++c, lanes += COUNT, pairs += COUNT) {
    const __m512i first = _mm512_xor_si512(_mm512_maskz_loadu_epi32(low, lanes), center);
    if constexpr (REST == 0) {
      _mm512_mask_storeu_epi32(pairs, low, _mm512_permutexvar_epi32(low_order, first));
    } else {
      const __m512i rest = _mm512_xor_si512(_mm512_maskz_loadu_epi32(high, lanes + 16), center);
      _mm512_mask_storeu_epi32(pairs, low, _mm512_permutex2var_epi32(first, low_order, rest));
      _mm512_mask_storeu_epi32(pairs + 16, high, _mm512_permutex2var_epi32(first, high_order, rest));
    }
  }
}

// Byte i of lane n: where in the eight bytes of two groups' columns survivor i of the lane finds its own. `index`: 16
// bytes of the two groups.
TORCHCOINFER_AVX512_INLINE __m512i columns_of(const uint8_t* index, __m512i shifts) {
  long long first, second;
  __builtin_memcpy(&first, index, sizeof first);
  __builtin_memcpy(&second, index + 8, sizeof second);
  constexpr __mmask64 SECOND = 0xccccccccccccccccull;
  const __m512i low = _mm512_multishift_epi64_epi8(shifts, _mm512_set1_epi64(first));
  const __m512i both = _mm512_mask_multishift_epi64_epi8(low, SECOND, shifts, _mm512_set1_epi64(second));
  // (both & 3) | offset of the second group
  return _mm512_ternarylogic_epi32(both, bytes_of(3), _mm512_set1_epi32(0x04040000), 0xEA);
}

// Nonzero where a nibble of a tile's index is not i0 < i1.
TORCHCOINFER_AVX512_INLINE __m512i unsound_pairs(const uint8_t* index) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1));
  const __m512i low = bytes_of(15), pairs = load_vector(index);
  return _mm512_or_si512(_mm512_shuffle_epi8(table, _mm512_and_si512(pairs, low)),
                         _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low)));
}

constexpr int chains(int rows) {
  return rows <= 3 ? 2 : 1;
}

struct Constants {
  __m512i order;   // words of a chunk's codes so that both groups of a row n are neighbors
  __m512i shifts;  // bits of a group's index that belong to a lane's bytes 0 and 1, and again 2 and 3

  TORCHCOINFER_AVX512 __attribute__((always_inline)) Constants() {
    alignas(64) uint16_t words[32];
    alignas(64) uint8_t bits[64];
    for (int i = 0; i < 32; ++i) words[i] = static_cast<uint16_t>(i % 2 * 16 + i / 2);
    for (int i = 0; i < 64; ++i) bits[i] = static_cast<uint8_t>(i / 4 * 4 + i % 2 * 2);
    order = _mm512_load_si512(words);
    shifts = _mm512_load_si512(bits);
  }
};

// parts += x * (code - zero), sums += code - zero, over the tiles of a segment.
template <int BITS, int ROWS, int CHAINS>
TORCHCOINFER_AVX512_INLINE void add_tiles(const uint8_t* index, const uint8_t* values, int64_t tiles,
                                          const Constants& constants, __m512i zeros, const int32_t* x,
                                          __m512i (*parts)[CHAINS], __m512i* sums, __m512i& unsound) {
  constexpr int64_t TILE_VALUES = TILE_CHUNKS * chunk_bytes(BITS);
  const __m512i ones = bytes_of(1);
  for (int64_t t = 0; t < tiles; ++t, index += INDEX_BYTES, values += TILE_VALUES) {
    _mm_prefetch(reinterpret_cast<const char*>(index) + TILES_AHEAD * INDEX_BYTES, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int64_t line = 0; line < TILE_VALUES; line += VECTOR_BYTES)
      _mm_prefetch(reinterpret_cast<const char*>(values) + TILES_AHEAD * TILE_VALUES + line, _MM_HINT_T0);
    unsound = _mm512_or_si512(unsound, unsound_pairs(index));
#pragma GCC unroll 4
    for (int c = 0; c < TILE_CHUNKS; ++c, x += 2 * ROWS) {
      const __m512i codes = _mm512_sub_epi8(
          _mm512_permutexvar_epi16(constants.order, chunk_codes<BITS>(values + c * chunk_bytes(BITS))), zeros);
      const __m512i columns = columns_of(index + 16 * c, constants.shifts);
      add_products(ones, codes, sums[c % 2]);
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
        long long two;
        __builtin_memcpy(&two, x + 2 * m, sizeof two);
        add_products(_mm512_shuffle_epi8(_mm512_set1_epi64(two), columns), codes, parts[m][c % CHAINS]);
      }
    }
  }
}

// One n-block; x: as pair_lanes makes it. False: an index is unsound.
template <int BITS, int DIGITS, int HEIGHT>
TORCHCOINFER_AVX512 bool multiply_block(const SparseCall& call, const QuantMatrix& w, const DigitRows& x,
                                        int64_t block) {
  constexpr int ROWS = DIGITS * HEIGHT, CHAINS = chains(ROWS);
  constexpr int64_t TILE_VALUES = TILE_CHUNKS * chunk_bytes(BITS);
  const Segments segments(w.K, w.group_size);
  const Constants constants;
  const uint8_t* index = call.weight.index + block * segments.tiles * INDEX_BYTES;
  const uint8_t* values = static_cast<const uint8_t*>(call.weight.values) + block * segments.tiles * TILE_VALUES;
  __m512i unsound = _mm512_setzero_si512();
  alignas(64) float totals[HEIGHT][BLOCK_N] = {};
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t t = segments.begin(s), place = block * segments.groups() + segments.group(s);
    const __m512i zeros = _mm512_mullo_epi32(load_zeros(w, place), _mm512_set1_epi32(0x01010101));
    __m512i parts[ROWS][CHAINS], sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
      for (int i = 0; i < CHAINS; ++i) parts[m][i] = _mm512_setzero_si512();
    add_tiles<BITS, ROWS, CHAINS>(index + t * INDEX_BYTES, values + t * TILE_VALUES, segments.end(s) - t, constants,
                                  zeros, x.lanes + t * QUADS * ROWS, parts, sums, unsound);
    const __m512 scale = load_scales(w, place);
    const __m512i excess = _mm512_mullo_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_set1_epi32(X_CENTER));
#pragma GCC unroll 16
    for (int m = 0; m < HEIGHT; ++m) {
      __m512i digits[DIGITS];
#pragma GCC unroll 3
      for (int d = 0; d < DIGITS; ++d) {
        __m512i* part = parts[m * DIGITS + d];
        digits[d] = _mm512_sub_epi32(CHAINS > 1 ? _mm512_add_epi32(part[0], part[CHAINS - 1]) : part[0], excess);
      }
      add_segment<DIGITS>(digits, scale, DIGITS == 1 ? 1.f : x.scales[s * HEIGHT + m], totals[m]);
    }
  }
  for (int m = 0; m < HEIGHT; ++m) store_scaled<DIGITS>(totals[m], x, m, call.out, m, block);
  return _mm512_test_epi8_mask(unsound, unsound) == 0;
}

// What serves a width, number of digits and height.
struct Kernel {
  bool (*block)(const SparseCall&, const QuantMatrix&, const DigitRows&, int64_t);
  void (*pairs)(const int32_t*, int64_t, int32_t*);
};

template <int BITS, int DIGITS, int HEIGHT = DigitTiles::ALONE / DIGITS>
Kernel kernel_of_height(int64_t height) {
  if (height == HEIGHT) return {multiply_block<BITS, DIGITS, HEIGHT>, pair_lanes<DIGITS * HEIGHT>};
  if constexpr (HEIGHT > 1) return kernel_of_height<BITS, DIGITS, HEIGHT - 1>(height);
  return {};
}

template <int BITS>
Kernel kernel_of(const DigitRows& x) {
  if (x.digits == 1) return kernel_of_height<BITS, 1>(x.rows);
  if (x.digits == 2) return kernel_of_height<BITS, 2>(x.rows);
  return kernel_of_height<BITS, 3>(x.rows);
}

}  // namespace

bool multiply_few_paired(const SparseCall& call, const QuantMatrix& w, const DigitRows& x,
                         const ParallelFor& parallel) {
  const Kernel kernel = w.bits == 2   ? kernel_of<2>(x)
                        : w.bits == 3 ? kernel_of<3>(x)
                        : w.bits == 4 ? kernel_of<4>(x)
                        : w.bits == 5 ? kernel_of<5>(x)
                                      : kernel_of<6>(x);
  const Buffer<int32_t> pairs(x.rows * x.row_lanes);
  kernel.pairs(x.lanes, call.weight.tiles() * TILE_CHUNKS, pairs.get());
  DigitRows paired = x;
  paired.lanes = pairs.get();
  const int64_t blocks = ceil_div(w.N, BLOCK_N), work = BLOCK_N * (w.K + 1) * (x.rows + 1);
  std::atomic<bool> sound{true};
  parallel(blocks, ceil_div(SPARSE_WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      if (!kernel.block(call, w, paired, block)) sound = false;
  });
  return sound;
}

}  // namespace torchcoinfer::avx512

#endif
