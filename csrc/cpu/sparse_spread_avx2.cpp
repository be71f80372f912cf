// Spreading survivors with tables of permutations. AVX2 + FMA.

#include "cpu/sparse_spread.h"

#if TORCHCOINFER_X86

#include <immintrin.h>

#include <cstring>

namespace torchcoinfer {
namespace {

constexpr int VECTORS = GROUP_PLACES / 8;  // float vectors of a group: 2 n x 4 k each

// For a mask of 8 places: which of the next survivors goes where, and all ones where one goes.
struct Table {
  alignas(32) uint8_t order[256][8];
  alignas(32) uint64_t chosen[256];

  constexpr Table() : order{}, chosen{} {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t taken = 0;
      for (int at = 0; at < 8; ++at) {
        order[mask][at] = taken;
        if (!(mask >> at & 1)) continue;
        chosen[mask] |= uint64_t{0xff} << 8 * at;
        ++taken;
      }
    }
  }
};
constexpr Table TABLE;

TORCHCOINFER_AVX2 int64_t count(const uint64_t* masks, int64_t words) {
  int64_t total = 0;
  for (int64_t w = 0; w < words; ++w) total += __builtin_popcountll(masks[w]);
  return total;
}

TORCHCOINFER_AVX2 int64_t bytes(const uint8_t* survivors, const uint64_t* masks, int64_t words, const uint8_t* filler,
                                uint8_t* places) {
  const uint8_t* next = survivors;
  for (int64_t w = 0; w < words; ++w)
    for (int n = 0; n < BLOCK_N; n += 2, places += 8) {
      const int mask = static_cast<int>(masks[w] >> GROUP_K * n & 255);
      const __m128i some = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(next));
      const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(TABLE.order[mask]));
      const uint64_t rest = 0x01010101ull * filler[n] | (0x01010101ull * filler[n + 1]) << 32;
      const uint64_t moved = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_shuffle_epi8(some, order)));
      const uint64_t merged = (moved & TABLE.chosen[mask]) | (rest & ~TABLE.chosen[mask]);
      std::memcpy(places, &merged, sizeof merged);
      next += __builtin_popcount(mask);
    }
  return next - survivors;
}

template <Dtype DTYPE>
TORCHCOINFER_AVX2 inline __attribute__((always_inline)) __m256 load_eight(const void* data, int64_t at) {
  if constexpr (DTYPE == Dtype::float32) return _mm256_loadu_ps(static_cast<const float*>(data) + at);
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(data) + at));
  if constexpr (DTYPE == Dtype::float16) return _mm256_cvtph_ps(halves);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

template <Dtype DTYPE>
TORCHCOINFER_AVX2 int64_t spread_floats(const void* survivors, const uint64_t* masks, int64_t words, float* places) {
  int64_t taken = 0;
  for (int64_t w = 0; w < words; ++w)
    for (int v = 0; v < VECTORS; ++v, places += 8) {
      const int mask = static_cast<int>(masks[w] >> 8 * v & 255);
      const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(TABLE.order[mask]));
      const __m128i chosen = _mm_cvtsi64_si128(static_cast<long long>(TABLE.chosen[mask]));
      const __m256 moved = _mm256_permutevar8x32_ps(load_eight<DTYPE>(survivors, taken), _mm256_cvtepu8_epi32(order));
      _mm256_storeu_ps(places, _mm256_and_ps(moved, _mm256_castsi256_ps(_mm256_cvtepi8_epi32(chosen))));
      taken += __builtin_popcount(mask);
    }
  return taken;
}

int64_t floats(const void* survivors, Dtype dtype, const uint64_t* masks, int64_t words, float* places) {
  if (dtype == Dtype::float32) return spread_floats<Dtype::float32>(survivors, masks, words, places);
  if (dtype == Dtype::float16) return spread_floats<Dtype::float16>(survivors, masks, words, places);
  return spread_floats<Dtype::bfloat16>(survivors, masks, words, places);
}

TORCHCOINFER_AVX2 void multiply(const float* places, int64_t words, const float* x, int64_t stride, int64_t rows,
                                float* sums) {
  for (int64_t m = 0; m < rows; ++m, x += stride, sums += GROUP_PLACES) {
    __m256 part[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) part[v] = _mm256_loadu_ps(sums + 8 * v);
    for (int64_t w = 0; w < words; ++w) {
      const __m256 four = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(x + GROUP_K * w));
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v)
        part[v] = _mm256_fmadd_ps(_mm256_loadu_ps(places + w * GROUP_PLACES + 8 * v), four, part[v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) _mm256_storeu_ps(sums + 8 * v, part[v]);
  }
}

// Plain loops that are short and vectorize as they are.
void unpack(const uint8_t* chunks, int64_t count, int bits, int shift, uint8_t* codes) {
  SPREAD_SCALAR.unpack(chunks, count, bits, shift, codes);
}
void masks(const uint8_t* index, int64_t words, uint64_t* masks) {
  SPREAD_SCALAR.masks(index, words, masks);
}

}  // namespace

const Spread SPREAD_AVX2 = {count, masks, unpack, bytes, floats, nullptr, multiply, store_scalar};

}  // namespace torchcoinfer

#endif
