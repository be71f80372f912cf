// Gathers patches into panels (conv2d_panels.h). AVX-512.

#include "cpu/conv2d_panels.h"

#if TORCHCOINFER_X86

#include <algorithm>

namespace torchcoinfer::avx512 {
namespace {

constexpr float CODE_TOP = 127.f;
constexpr float LARGEST_FLOAT = 3.4028235e38f;

TORCHCOINFER_AVX512_INLINE __mmask16 lanes_mask(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1 << count) - 1);
}

// Column k of 16 patches; zeros beyond the last column.
TORCHCOINFER_AVX512_INLINE __m512 load_column(const PatchSource& source, const float* x, int64_t k, __mmask16 mask) {
  if (k >= static_cast<int64_t>(source.taps.size())) return _mm512_setzero_ps();
  return _mm512_maskz_loadu_ps(mask, x + source.taps[k]);
}

// Four columns of 16 patches as codes: byte i of lane j = rint(column k + i of patch j * inverse).
TORCHCOINFER_AVX512_INLINE __m512i four_codes(const __m512* columns, __m512 inverse) {
  const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(columns[0], inverse));
  const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(columns[1], inverse));
  const __m512i c = _mm512_cvtps_epi32(_mm512_mul_ps(columns[2], inverse));
  const __m512i d = _mm512_cvtps_epi32(_mm512_mul_ps(columns[3], inverse));
  const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm512_shuffle_epi8(bytes, order);
}

// The factor to codes of 16 patches, and their scales.
TORCHCOINFER_AVX512_INLINE __m512 code_factors(const PatchSource& source, int64_t position, __mmask16 mask,
                                               float* scales) {
  __m512i bits = _mm512_setzero_si512();  // as integers, NaN is above infinity and that above all numbers
  for (const int64_t tap : source.window)
    bits = _mm512_max_epi32(bits, _mm512_maskz_loadu_epi32(mask, source.largest + position + tap));
  const __m512 largest = _mm512_castsi512_ps(bits), top = _mm512_set1_ps(CODE_TOP);
  const __mmask16 finite = _mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_setzero_ps(), _CMP_GT_OQ) & finite;
  const __m512 nan = _mm512_set1_ps(__builtin_nanf(""));
  _mm512_storeu_ps(scales, _mm512_mask_div_ps(nan, finite, largest, top));
  return _mm512_min_ps(_mm512_maskz_div_ps(some, top, largest), _mm512_set1_ps(LARGEST_FLOAT));
}

template <int VECTORS>
TORCHCOINFER_AVX512 void gather_codes(const PatchSource& source, int64_t first, const Panel& panel) {
  const __m512i ones = bytes_of(1), flip = bytes_of(0x80);
  const float* x = source.x + first;
  __mmask16 masks[VECTORS];
  __m512 factors[VECTORS];
#pragma GCC unroll 3
  for (int v = 0; v < VECTORS; ++v) {
    masks[v] = lanes_mask(source.positions - first - 16 * v);
    factors[v] = code_factors(source, first + 16 * v, masks[v], panel.scales + 16 * v);
  }
  int32_t* lanes = panel.lanes;
  for (int64_t s = 0; s < source.segments.count; ++s) {
    __m512i sums[VECTORS] = {};
    for (int64_t k = source.segments.begin(s) * TILE_K; k < source.segments.end(s) * TILE_K;
         k += 4, lanes += TILE_POSITIONS)
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) {
        __m512 columns[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) columns[i] = load_column(source, x + 16 * v, k + i, masks[v]);
        const __m512i codes = four_codes(columns, factors[v]);
        sums[v] = _mm512_dpbusd_epi32(sums[v], ones, codes);
        _mm512_storeu_si512(lanes + 16 * v, _mm512_xor_si512(codes, flip));
      }
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v)
      _mm512_storeu_si512(static_cast<int32_t*>(panel.sums) + s * TILE_POSITIONS + 16 * v, sums[v]);
  }
}

TORCHCOINFER_AVX512_INLINE void store_columns(const __m512* columns, int32_t* lanes, const FloatKind*) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) _mm512_storeu_ps(reinterpret_cast<float*>(lanes) + i * TILE_POSITIONS, columns[i]);
}
TORCHCOINFER_AVX512_INLINE void store_columns(const __m512* columns, int32_t* lanes, const PairKind*) {
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {  // x is bfloat16: the lower halves are zeros
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(columns[i]), 16);
    _mm512_storeu_si512(lanes + i * TILE_POSITIONS, _mm512_or_si512(low, _mm512_castps_si512(columns[i + 2])));
  }
}

template <typename Kind, int VECTORS>
TORCHCOINFER_AVX512 void gather_floats(const PatchSource& source, int64_t first, const Panel& panel) {
  constexpr int64_t STEP = 4 / Kind::K_EACH * TILE_POSITIONS;
  const float* x = source.x + first;
  int32_t* lanes = panel.lanes;
  for (int64_t s = 0; s < source.segments.count; ++s) {
    __m512 sums[VECTORS] = {};
    for (int64_t k = source.segments.begin(s) * TILE_K; k < source.segments.end(s) * TILE_K; k += 4, lanes += STEP)
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) {
        const __mmask16 mask = lanes_mask(source.positions - first - 16 * v);
        __m512 columns[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) columns[i] = load_column(source, x + 16 * v, k + i, mask);
        store_columns(columns, lanes + 16 * v, static_cast<const Kind*>(nullptr));
        if (!source.sums) continue;
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sums[v] = _mm512_add_ps(sums[v], columns[i]);
      }
    if (!source.sums) continue;
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v)
      _mm512_storeu_ps(static_cast<float*>(panel.sums) + s * TILE_POSITIONS + 16 * v, sums[v]);
  }
}

template <typename Kind, int VECTORS>
void gather_vectors(const PatchSource& source, int64_t first, const Panel& panel) {
  if constexpr (Kind::K_EACH == 4)
    gather_codes<VECTORS>(source, first, panel);
  else
    gather_floats<Kind, VECTORS>(source, first, panel);
}

}  // namespace

template <typename Kind>
void gather_panel(const PatchSource& source, const PositionTile& tile, const Panel& panel) {
  if (tile.vectors == 1) gather_vectors<Kind, 1>(source, tile.first, panel);
  if (tile.vectors == 2) gather_vectors<Kind, 2>(source, tile.first, panel);
  if (tile.vectors == 3) gather_vectors<Kind, 3>(source, tile.first, panel);
}

template void gather_panel<FloatKind>(const PatchSource&, const PositionTile&, const Panel&);
template void gather_panel<PairKind>(const PatchSource&, const PositionTile&, const Panel&);
template void gather_panel<CodeKind>(const PatchSource&, const PositionTile&, const Panel&);

}  // namespace torchcoinfer::avx512

#endif
