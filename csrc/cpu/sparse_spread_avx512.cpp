// Spreading survivors with vpexpandb and vpexpandw. AVX-512 VBMI2.

#include "cpu/sparse_spread.h"

#if TORCHCOINFER_X86

#include "cpu/sparse_chunk_avx512.h"
#include "cpu/store_avx512.h"

namespace torchcoinfer {
namespace {

constexpr int VECTORS = GROUP_PLACES / 16;  // float vectors of a group: 4 n x 4 k each
constexpr int64_t AHEAD_BYTES = 4096;       // nearer, a single core does not reach the memory's speed

TORCHCOINFER_AVX512 int64_t count(const uint64_t* masks, int64_t words) {
  __m512i total = _mm512_setzero_si512();
  for (int64_t w = 0; w < words; w += 8)  // words come in whole tiles
    total = _mm512_add_epi64(total, _mm512_popcnt_epi64(_mm512_loadu_si512(masks + w)));
  return _mm512_reduce_add_epi64(total);
}

TORCHCOINFER_AVX512 void masks(const uint8_t* index, int64_t words, uint64_t* masks) {
  // nibble i0 | i1 << 2 -> bits i0 and i1
  const __m512i table = _mm512_broadcast_i32x4(
      _mm_setr_epi8(1, 3, 5, 9, 3, 2, 6, 10, 5, 6, 4, 12, 9, 10, 12, 8));
  const __m512i low = avx512::bytes_of(15);
  for (int64_t w = 0; w < words; w += 8) {
    const __m512i pairs = avx512::load_vector(index + 8 * w);
    _mm_prefetch(reinterpret_cast<const char*>(index) + 8 * w + AHEAD_BYTES, _MM_HINT_T0);
    const __m512i even = _mm512_shuffle_epi8(table, _mm512_and_si512(pairs, low));
    const __m512i odd = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low));
    _mm512_storeu_si512(masks + w, _mm512_or_si512(even, _mm512_slli_epi16(odd, 4)));
  }
}

template <int BITS>
TORCHCOINFER_AVX512 void unpack_bits(const uint8_t* chunks, int64_t count, int shift, uint8_t* codes) {
  const __m512i moved = avx512::bytes_of(shift);
  for (int64_t c = 0; c < count; ++c, chunks += chunk_bytes(BITS), codes += CHUNK) {
    const __m512i code = avx512::chunk_codes<BITS>(chunks);
    _mm_prefetch(reinterpret_cast<const char*>(chunks) + AHEAD_BYTES, _MM_HINT_T0);
    _mm512_storeu_si512(codes, _mm512_add_epi8(code, moved));
  }
}

void unpack(const uint8_t* chunks, int64_t count, int bits, int shift, uint8_t* codes) {
  if (bits == 2) unpack_bits<2>(chunks, count, shift, codes);
  if (bits == 3) unpack_bits<3>(chunks, count, shift, codes);
  if (bits == 4) unpack_bits<4>(chunks, count, shift, codes);
  if (bits == 5) unpack_bits<5>(chunks, count, shift, codes);
  if (bits == 6) unpack_bits<6>(chunks, count, shift, codes);
  if (bits == 8) unpack_bits<8>(chunks, count, shift, codes);
}

// Zeros that the compiler does not know to be such. Expanding into them, not with zero masking: on Zen 5 that waits for
// what the register held before.
TORCHCOINFER_AVX512_INLINE __m512i opaque_zeros() {
  __m512i zeros = _mm512_setzero_si512();
  asm("" : "+v"(zeros));
  return zeros;
}

// 64 bytes in a register: an expanding load would be several times as slow as a load and an expansion (Zen 5).
TORCHCOINFER_AVX512_INLINE __m512i load_first(const uint8_t* data) {
  __m512i bytes = avx512::load_vector(data);
  asm("" : "+v"(bytes));
  return bytes;
}

TORCHCOINFER_AVX512 int64_t bytes(const uint8_t* survivors, const uint64_t* masks, int64_t words,
                                  const uint8_t* filler, uint8_t* places) {
  // each of the 16 filler bytes four times
  const __m512i lanes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(filler)));
  const __m512i rest = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x01010101));
  const uint8_t* next = survivors;
  for (int64_t w = 0; w < words; ++w) {
    const __m512i some = load_first(next);
    _mm512_storeu_si512(places + w * GROUP_PLACES, _mm512_mask_expand_epi8(rest, masks[w], some));
    next += __builtin_popcountll(masks[w]);
  }
  return next - survivors;
}

// 16 halfwords as floats.
template <Dtype DTYPE>
TORCHCOINFER_AVX512_INLINE __m512 widen(__m256i halves) {
  if constexpr (DTYPE == Dtype::float16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// The places of one group, four vectors of 4 n x 4 k; advances `next` by the survivors taken.
template <Dtype DTYPE>
TORCHCOINFER_AVX512_INLINE void group_places(const uint8_t*& next, uint64_t mask, __m512i zeros, __m512* places) {
  if constexpr (DTYPE == Dtype::float32) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const auto part = static_cast<__mmask16>(mask >> 16 * v);
      places[v] = _mm512_castsi512_ps(_mm512_mask_expand_epi32(zeros, part, load_first(next)));
      next += sizeof(float) * __builtin_popcount(part);
    }
  } else {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const auto part = static_cast<__mmask32>(mask >> 32 * half);
      const __m512i some = _mm512_mask_expand_epi16(zeros, part, load_first(next));
      places[2 * half] = widen<DTYPE>(_mm512_castsi512_si256(some));
      places[2 * half + 1] = widen<DTYPE>(_mm512_extracti64x4_epi64(some, 1));
      next += sizeof(uint16_t) * __builtin_popcount(part);
    }
  }
}

template <Dtype DTYPE>
TORCHCOINFER_AVX512 int64_t spread_floats(const uint8_t* survivors, const uint64_t* masks, int64_t words,
                                          float* places) {
  const __m512i zeros = opaque_zeros();
  const uint8_t* next = survivors;
  for (int64_t w = 0; w < words; ++w) {
    __m512 group[VECTORS];
    group_places<DTYPE>(next, masks[w], zeros, group);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) _mm512_storeu_ps(places + w * GROUP_PLACES + 16 * v, group[v]);
  }
  return (next - survivors) / dtype_bytes(DTYPE);
}

int64_t floats(const void* survivors, Dtype dtype, const uint64_t* masks, int64_t words, float* places) {
  const auto* source = static_cast<const uint8_t*>(survivors);
  if (dtype == Dtype::float32) return spread_floats<Dtype::float32>(source, masks, words, places);
  if (dtype == Dtype::float16) return spread_floats<Dtype::float16>(source, masks, words, places);
  return spread_floats<Dtype::bfloat16>(source, masks, words, places);
}

template <Dtype DTYPE, int ROWS>
TORCHCOINFER_AVX512 void few_rows(const uint8_t* next, const uint64_t* masks, int64_t words, const float* x,
                                  int64_t stride, float* sums) {
  const __m512i zeros = opaque_zeros();
  __m512 part[ROWS][VECTORS];
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) part[m][v] = _mm512_loadu_ps(sums + m * GROUP_PLACES + 16 * v);
  for (int64_t w = 0; w < words; ++w) {
    __m512 group[VECTORS];
    _mm_prefetch(reinterpret_cast<const char*>(next) + AHEAD_BYTES, _MM_HINT_T0);
    group_places<DTYPE>(next, masks[w], zeros, group);
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) {
      const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(x + m * stride + GROUP_K * w));
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) part[m][v] = _mm512_fmadd_ps(group[v], four, part[m][v]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) _mm512_storeu_ps(sums + m * GROUP_PLACES + 16 * v, part[m][v]);
}

template <Dtype DTYPE>
void few_of(const uint8_t* survivors, const uint64_t* masks, int64_t words, const float* x, int64_t stride,
            int64_t rows, float* sums) {
  if (rows == 1) few_rows<DTYPE, 1>(survivors, masks, words, x, stride, sums);
  if (rows == 2) few_rows<DTYPE, 2>(survivors, masks, words, x, stride, sums);
  if (rows == 3) few_rows<DTYPE, 3>(survivors, masks, words, x, stride, sums);
  if (rows == 4) few_rows<DTYPE, 4>(survivors, masks, words, x, stride, sums);
}

void few(const void* survivors, Dtype dtype, const uint64_t* masks, int64_t words, const float* x, int64_t stride,
         int64_t rows, float* sums) {
  const auto* source = static_cast<const uint8_t*>(survivors);
  if (dtype == Dtype::float32) return few_of<Dtype::float32>(source, masks, words, x, stride, rows, sums);
  if (dtype == Dtype::float16) return few_of<Dtype::float16>(source, masks, words, x, stride, rows, sums);
  few_of<Dtype::bfloat16>(source, masks, words, x, stride, rows, sums);
}

template <int ROWS>
TORCHCOINFER_AVX512 void multiply_rows(const float* places, int64_t words, const float* x, int64_t stride,
                                       float* sums) {
  __m512 part[ROWS][VECTORS];
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) part[m][v] = _mm512_loadu_ps(sums + m * GROUP_PLACES + 16 * v);
  for (int64_t w = 0; w < words; ++w, places += GROUP_PLACES)
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) {
      const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(x + m * stride + GROUP_K * w));
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v)
        part[m][v] = _mm512_fmadd_ps(_mm512_loadu_ps(places + 16 * v), four, part[m][v]);
    }
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) _mm512_storeu_ps(sums + m * GROUP_PLACES + 16 * v, part[m][v]);
}

void multiply(const float* places, int64_t words, const float* x, int64_t stride, int64_t rows, float* sums) {
  int64_t m = 0;
  for (; m + 4 <= rows; m += 4) multiply_rows<4>(places, words, x + m * stride, stride, sums + m * GROUP_PLACES);
  if (rows - m >= 2) {
    multiply_rows<2>(places, words, x + m * stride, stride, sums + m * GROUP_PLACES);
    m += 2;
  }
  if (m < rows) multiply_rows<1>(places, words, x + m * stride, stride, sums + m * GROUP_PLACES);
}

// Neighbors of a pair of vectors added: within 128 bits, sums of left's two pairs, then of right's.
TORCHCOINFER_AVX512_INLINE __m512 add_neighbors(__m512 left, __m512 right) {
  return _mm512_add_ps(_mm512_shuffle_ps(left, right, 0x88), _mm512_shuffle_ps(left, right, 0xdd));
}

TORCHCOINFER_AVX512 void store(const float* sums, int64_t rows, const Output& out, int64_t block) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int64_t m = 0; m < rows; ++m, sums += GROUP_PLACES) {
    __m512 v[VECTORS];
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; ++i) v[i] = _mm512_loadu_ps(sums + 16 * i);
    const __m512 fours = add_neighbors(add_neighbors(v[0], v[1]), add_neighbors(v[2], v[3]));
    avx512::store_sums(_mm512_permutexvar_ps(order, fours), out, m, block);
  }
}

}  // namespace

const Spread SPREAD_AVX512 = {count, masks, unpack, bytes, floats, few, multiply, store};

}  // namespace torchcoinfer

#endif
