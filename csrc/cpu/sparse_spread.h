// Spreads survivors over the places of their groups: the step from a sparse format to dense operands. One set of
// functions an instruction set; no torch header.

#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/linear.h"
#include "layout_sparse.h"

namespace torchcoinfer {

constexpr int64_t FEW_ROWS = 4;
constexpr int64_t SURVIVOR_SLACK = 64;  // elements that may be read beyond the last survivor of a window

struct Spread {
  // bits set; words are a multiple of TILE_GROUPS here and in `masks`
  int64_t (*count)(const uint64_t* masks, int64_t words);
  // masks[w] of group w from 8 index bytes each (2:4)
  void (*masks)(const uint8_t* index, int64_t words, uint64_t* masks);
  // `count` chunks to codes + shift, 64 each
  void (*unpack)(const uint8_t* chunks, int64_t count, int bits, int shift, uint8_t* codes);
  // Each word's places: the next survivors where its bit is set, elsewhere filler[n]. Returns the survivors taken.
  int64_t (*bytes)(const uint8_t* survivors, const uint64_t* masks, int64_t words, const uint8_t* filler,
                   uint8_t* places);
  int64_t (*floats)(const void* survivors, Dtype dtype, const uint64_t* masks, int64_t words, float* places);
  // `floats` and `multiply` in one step for up to FEW_ROWS rows, without places; nullptr where there is none
  void (*few)(const void* survivors, Dtype dtype, const uint64_t* masks, int64_t words, const float* x, int64_t stride,
              int64_t rows, float* sums);
  // sums[m][4 * n + i] += sum over the words of places[w][4 * n + i] * x[m][4 * w + i]
  void (*multiply)(const float* places, int64_t words, const float* x, int64_t stride, int64_t rows, float* sums);
  // a block's columns of y[m] from sums[m]: (s[4n] + s[4n + 1]) + (s[4n + 2] + s[4n + 3]), and what the output adds
  void (*store)(const float* sums, int64_t rows, const Output& out, int64_t block);
};

void store_scalar(const float* sums, int64_t rows, const Output& out, int64_t block);

extern const Spread SPREAD_SCALAR;
#if TORCHCOINFER_X86
extern const Spread SPREAD_AVX2;
extern const Spread SPREAD_AVX512;
#endif
#if TORCHCOINFER_ARM
extern const Spread SPREAD_NEON;
#endif

inline const Spread& spread_of(Isa isa) {
#if TORCHCOINFER_X86
  if (has_avx512(isa)) return SPREAD_AVX512;
  if (isa == Isa::avx2) return SPREAD_AVX2;
#endif
#if TORCHCOINFER_ARM
  if (isa == Isa::neon) return SPREAD_NEON;
#endif
  (void)isa;
  return SPREAD_SCALAR;
}

}  // namespace torchcoinfer
