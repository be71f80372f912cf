// Float survivors times bfloat16 rows with vdpbf16ps: 32 places (8 n x 4 k) expand into the pairs of one operand, and
// lane 2 * (n % 8) + i sums the columns 2i and 2i + 1 of every four. AVX-512 VBMI2 and BF16.

#pragma once

#include <immintrin.h>

#include <cstring>

#include "cpu/decode_avx512.h"
#include "layout_sparse.h"

namespace torchcoinfer::avx512 {

constexpr int HALVES = 2;                       // vectors of a group
constexpr int64_t HALF = GROUP_PLACES / HALVES;
constexpr int64_t SUMS = HALVES * 16;           // of a row and block
constexpr int MOST_HEIGHT = 12;                 // rows of a register tile
constexpr int64_t AHEAD_BYTES = 8192;           // of survivors; nearer, a single core does not reach the memory's speed

// sum += w * x, as an instruction: from the intrinsic g++ 12 makes copies of the sums.
TORCHCOINFER_AVX512_INLINE void multiply_add(__m512i w, __m512i x, __m512& sum) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
}

// Zeros that the compiler does not know to be such. Expanding into them, not with zero masking: on Zen 5 that waits for
// what the register held before.
TORCHCOINFER_AVX512_INLINE __m512i opaque_zeros() {
  __m512i zeros = _mm512_setzero_si512();
  asm("" : "+v"(zeros));
  return zeros;
}

// The next survivors in the given places: a load and an expansion, since an expanding load is slow on Zen 5.
TORCHCOINFER_AVX512_INLINE __m512i expand(const uint16_t* next, __mmask32 places, __m512i zeros) {
  __m512i some = _mm512_loadu_si512(next);
  asm("" : "+v"(some));
  return _mm512_mask_expand_epi16(zeros, places, some);
}

// A group's mask straight from memory: two moves from general registers cost more than a shift.
struct Places {
  __mmask32 left, right;

  TORCHCOINFER_AVX512 __attribute__((always_inline)) explicit Places(const uint64_t* mask) {
    __mmask64 both, high;
    asm("kmovq %1, %0" : "=k"(both) : "m"(*mask));
    asm("kshiftrq $32, %1, %0" : "=k"(high) : "k"(both));
    left = static_cast<__mmask32>(both), right = static_cast<__mmask32>(high);
  }
};

TORCHCOINFER_AVX512_INLINE __m512i four_columns(const uint16_t* x) {
  long long four;
  std::memcpy(&four, x, sizeof four);
  return _mm512_set1_epi64(four);
}

// sums [ROWS][2 halves][16] += words times rows of x; words are a multiple of 2. AHEAD: survivors come from memory.
template <int ROWS, bool AHEAD>
TORCHCOINFER_AVX512 void few_rows(const uint16_t* next, const uint64_t* masks, int64_t words, const uint16_t* x,
                                  int64_t stride, float* sums) {
  constexpr int CHAINS = ROWS <= 2 ? 2 : 1;  // one row alone would wait for its own sums
  const __m512i zeros = opaque_zeros();
  __m512 parts[ROWS][HALVES][CHAINS];
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
    for (int h = 0; h < HALVES; ++h) {
      parts[m][h][0] = _mm512_loadu_ps(sums + m * SUMS + 16 * h);
      if constexpr (CHAINS == 2) parts[m][h][1] = _mm512_setzero_ps();
    }
  for (int64_t w = 0; w < words; w += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      uint64_t mask = masks[w + i];
      asm("" : "+r"(mask));  // loaded once, not by either count
      const Places places(masks + w + i);
      const __m512i left = expand(next, places.left, zeros);
      const __m512i right = expand(next + __builtin_popcount(static_cast<uint32_t>(mask)), places.right, zeros);
      if constexpr (AHEAD) _mm_prefetch(reinterpret_cast<const char*>(next) + AHEAD_BYTES, _MM_HINT_T0);
      next += __builtin_popcountll(mask);
#pragma GCC unroll 4
      for (int m = 0; m < ROWS; ++m) {
        const __m512i four = four_columns(x + m * stride + GROUP_K * (w + i));
        multiply_add(left, four, parts[m][0][i % CHAINS]);
        multiply_add(right, four, parts[m][1][i % CHAINS]);
      }
    }
    if (w % 8 == 0) _mm_prefetch(reinterpret_cast<const char*>(masks + w) + AHEAD_BYTES / 2, _MM_HINT_T0);
  }
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
    for (int h = 0; h < HALVES; ++h) {
      if constexpr (CHAINS == 2) parts[m][h][0] = _mm512_add_ps(parts[m][h][0], parts[m][h][1]);
      _mm512_storeu_ps(sums + m * SUMS + 16 * h, parts[m][h][0]);
    }
}

// Survivors as bfloat16, rounded to nearest even; `count` may be exceeded by less than a vector on both sides.
TORCHCOINFER_AVX512 inline void round_survivors(const void* survivors, Dtype dtype, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; i += 32) {
    _mm_prefetch(static_cast<const char*>(survivors) + i * dtype_bytes(dtype) + AHEAD_BYTES, _MM_HINT_T0);
    const __m512 low = load_floats(survivors, dtype, i), high = load_floats(survivors, dtype, i + 16);
    _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

// Spreads a window: places [words][64]. AHEAD: as above.
template <bool AHEAD>
TORCHCOINFER_AVX512 void spread_window(const uint16_t* next, const uint64_t* masks, int64_t words, uint16_t* places) {
  const __m512i zeros = opaque_zeros();
  for (int64_t w = 0; w < words; ++w, places += GROUP_PLACES) {
    const Places here(masks + w);
    _mm512_store_si512(places, expand(next, here.left, zeros));
    _mm512_store_si512(places + HALF, expand(next + __builtin_popcount(static_cast<uint32_t>(masks[w])), here.right, zeros));
    if constexpr (AHEAD) _mm_prefetch(reinterpret_cast<const char*>(next) + AHEAD_BYTES, _MM_HINT_T0);
    next += __builtin_popcountll(masks[w]);
  }
}

// One register tile: sums [ROWS][2 halves][16] += places [words][64] times panel [words][ROWS] of four columns.
template <int ROWS>
TORCHCOINFER_AVX512 void multiply_tile(const uint16_t* places, int64_t words, const uint16_t* panel, float* sums) {
  __m512 parts[ROWS][HALVES];
#pragma GCC unroll 12
  for (int m = 0; m < ROWS; ++m) {
    parts[m][0] = _mm512_load_ps(sums + m * SUMS);
    parts[m][1] = _mm512_load_ps(sums + m * SUMS + 16);
  }
  for (int64_t w = 0; w < words; ++w, places += GROUP_PLACES, panel += GROUP_K * ROWS) {
    const __m512i left = _mm512_load_si512(places), right = _mm512_load_si512(places + HALF);
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m) {
      const __m512i four = four_columns(panel + GROUP_K * m);
      multiply_add(left, four, parts[m][0]);
      multiply_add(right, four, parts[m][1]);
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < ROWS; ++m) {
    _mm512_store_ps(sums + m * SUMS, parts[m][0]);
    _mm512_store_ps(sums + m * SUMS + 16, parts[m][1]);
  }
}

using MultiplyTile = void (*)(const uint16_t*, int64_t, const uint16_t*, float*);
constexpr MultiplyTile MULTIPLY[MOST_HEIGHT + 1] = {
    nullptr,          multiply_tile<1>, multiply_tile<2>, multiply_tile<3>,  multiply_tile<4>,  multiply_tile<5>,
    multiply_tile<6>, multiply_tile<7>, multiply_tile<8>, multiply_tile<9>, multiply_tile<10>, multiply_tile<11>,
    multiply_tile<12>};

}  // namespace torchcoinfer::avx512
