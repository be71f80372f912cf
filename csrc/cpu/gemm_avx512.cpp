// Many rows of gathered patches (conv2d_panels.cpp): a chunk of K of some n-blocks is decoded into L1 or L2, then multiplied in register tiles of up to
// 12 rows x 32 columns (a pair of blocks). AVX-512.

#include "cpu/gemm_avx512.h"

#include "cpu/isa.h"

#if TORCHCOINFER_X86

#include <cstring>

#include "cpu/buffer.h"
#include "cpu/store_avx512.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int64_t BLOCKS = 2;
constexpr int64_t COLUMNS = BLOCKS * BLOCK_N;
constexpr int64_t LEAST_CHUNK_K = 128;            // columns of W decoded at once: whole segments
constexpr int64_t MOST_CHUNK_K = SEGMENT_K;
constexpr int64_t MOST_PAIRS = 8;                 // pairs that pass over x together where x does not stay in L2
constexpr int64_t LINE_LANES = 16;                // 32-bit lanes of a cache line
constexpr int64_t RESIDENT_BYTES = 256 << 10;     // x that does

// What is decoded for each kind of rows: k of one 32-bit lane, and the sum's register.
template <typename Rows>
struct Kind;
template <>
struct Kind<FloatRows> {
  static constexpr int K_EACH = 1;
  using Sum = __m512;
};
template <>
struct Kind<PairRows> {
  static constexpr int K_EACH = 2;
  using Sum = __m512;
};
template <>
struct Kind<CodeRows> {
  static constexpr int K_EACH = 4;
  using Sum = __m512i;
};

// sum += w * x, as instructions: from the intrinsics g++ 12 makes copies and spills of the sums in the inner loop.
TORCHCOINFER_AVX512_INLINE void multiply_add(__m512 w, __m512i x, __m512& sum, const FloatRows*) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
}
TORCHCOINFER_AVX512_INLINE void multiply_add(__m512 w, __m512i x, __m512& sum, const PairRows*) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
}
TORCHCOINFER_AVX512_INLINE void multiply_add(__m512 w, __m512i x, __m512i& sum, const CodeRows*) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
}

// Decoded chunk: [K / K_EACH][32] lanes of 32 bits. Block b of the pair fills columns 16b .. 16b + 15.
template <int BITS>
TORCHCOINFER_AVX512_INLINE void decode(const Values<BITS>& values, const uint8_t* tile, const FloatRows*, float* out) {
  __m512i quads[QUADS];
  values.floats_from(tile, quads);
#pragma GCC unroll 8
  for (int q = 0; q < QUADS; ++q) {
    _mm512_store_ps(out + (4 * q + 0) * COLUMNS, values.template to_float<0>(quads[q]));
    _mm512_store_ps(out + (4 * q + 1) * COLUMNS, values.template to_float<1>(quads[q]));
    _mm512_store_ps(out + (4 * q + 2) * COLUMNS, values.template to_float<2>(quads[q]));
    _mm512_store_ps(out + (4 * q + 3) * COLUMNS, values.template to_float<3>(quads[q]));
  }
}
template <int BITS>
TORCHCOINFER_AVX512_INLINE void decode(const Values<BITS>& values, const uint8_t* tile, const PairRows*, float* out) {
  __m512i quads[QUADS];
  values.pairs_from(tile, quads);
#pragma GCC unroll 8
  for (int q = 0; q < QUADS; ++q) {
    _mm512_store_si512(out + (2 * q + 0) * COLUMNS, values.template to_pairs<0>(quads[q]));
    _mm512_store_si512(out + (2 * q + 1) * COLUMNS, values.template to_pairs<1>(quads[q]));
  }
}
template <int BITS>
TORCHCOINFER_AVX512_INLINE void decode(const Values<BITS>&, const uint8_t* tile, const CodeRows*, float* out) {
  __m512i quads[QUADS];
  decode_quads<BITS>(tile, quads);
#pragma GCC unroll 8
  for (int q = 0; q < QUADS; ++q) _mm512_store_si512(out + q * COLUMNS, quads[q]);
}

// Scales and zero points of the pair of blocks in one segment.
struct Scales {
  __m512 scale[BLOCKS];
  __m512i zero[BLOCKS];
};

// What the sums of a segment start from: for codes, minus zero point times sum of x, exactly.
TORCHCOINFER_AVX512_INLINE __m512 start(const Scales&, int, const FloatRows&, int64_t) {
  return _mm512_setzero_ps();
}
TORCHCOINFER_AVX512_INLINE __m512 start(const Scales&, int, const PairRows&, int64_t) {
  return _mm512_setzero_ps();
}
TORCHCOINFER_AVX512_INLINE __m512i start(const Scales& scales, int b, const CodeRows& x, int64_t place) {
  return _mm512_mullo_epi32(scales.zero[b], _mm512_set1_epi32(-x.sums[place]));
}

// sums += scale * (part - offset * sum of x)
template <typename Rows>
TORCHCOINFER_AVX512_INLINE void finish(const QuantMatrix& w, const Scales& scales, int b, __m512 part, const Rows& x,
                                       int64_t place, float* sums) {
  if (w.zeros) {
    const __m512i offset = _mm512_sub_epi32(scales.zero[b], _mm512_set1_epi32(implicit_zero(w.bits)));
    part = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(offset), _mm512_set1_ps(x.sums[place]), part);
  }
  _mm512_store_ps(sums, _mm512_fmadd_ps(scales.scale[b], part, _mm512_load_ps(sums)));
}
TORCHCOINFER_AVX512_INLINE void finish(const QuantMatrix&, const Scales& scales, int b, __m512i part, const CodeRows&,
                                       int64_t, float* sums) {
  _mm512_store_ps(sums, _mm512_fmadd_ps(scales.scale[b], _mm512_cvtepi32_ps(part), _mm512_load_ps(sums)));
}

// One row tile times the 32 decoded columns of one segment. panel: [lanes][ROWS]; sums: [rows][32].
template <typename Rows, int ROWS>
TORCHCOINFER_AVX512 void multiply_segment(const QuantMatrix& w, const Rows& x, int64_t row, const float* panel,
                                          int64_t lanes, const float* decoded, const Scales& scales, int64_t segment,
                                          int64_t segment_count, float* sums) {
  using Sum = typename Kind<Rows>::Sum;
  Sum parts[ROWS][BLOCKS];
#pragma GCC unroll 12
  for (int m = 0; m < ROWS; ++m) {
    const int64_t place = (row + m) * segment_count + segment;
    parts[m][0] = start(scales, 0, x, place);
    parts[m][1] = start(scales, 1, x, place);
  }
  for (int64_t i = 0; i < lanes; ++i, decoded += COLUMNS, panel += ROWS) {
    const __m512 left = _mm512_load_ps(decoded), right = _mm512_load_ps(decoded + BLOCK_N);
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m) {
      const __m512i lane = _mm512_castps_si512(_mm512_set1_ps(panel[m]));
      multiply_add(left, lane, parts[m][0], &x);
      multiply_add(right, lane, parts[m][1], &x);
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < ROWS; ++m) {
    const int64_t place = (row + m) * segment_count + segment;
    finish(w, scales, 0, parts[m][0], x, place, sums + (row + m) * COLUMNS);
    finish(w, scales, 1, parts[m][1], x, place, sums + (row + m) * COLUMNS + BLOCK_N);
  }
}

template <typename Rows>
using MultiplySegment = void (*)(const QuantMatrix&, const Rows&, int64_t, const float*, int64_t, const float*,
                                 const Scales&, int64_t, int64_t, float*);

template <typename Rows>
constexpr MultiplySegment<Rows> MULTIPLY[RowTiles::MOST + 1] = {nullptr,
                                                           multiply_segment<Rows, 1>,
                                                           multiply_segment<Rows, 2>,
                                                           multiply_segment<Rows, 3>,
                                                           multiply_segment<Rows, 4>,
                                                           multiply_segment<Rows, 5>,
                                                           multiply_segment<Rows, 6>,
                                                           multiply_segment<Rows, 7>,
                                                           multiply_segment<Rows, 8>,
                                                           multiply_segment<Rows, 9>,
                                                           multiply_segment<Rows, 10>,
                                                           multiply_segment<Rows, 11>,
                                                           multiply_segment<Rows, 12>};

// Pairs of n-blocks [begin, end) that pass over x together; where the last pair lacks its second block, the first
// stands in for it.
struct Pairs {
  int64_t begin;  // block
  int64_t end;

  int64_t count() const {
    return ceil_div(end - begin, BLOCKS);
  }
  int64_t block(int64_t pair, int64_t which) const {
    const int64_t index = begin + pair * BLOCKS + which;
    return index < end ? index : end - 1;
  }
};

// All rows times some pairs. decoded: [pairs][chunk lanes][32]; sums: [pairs][rows][32].
template <int BITS, typename Rows>
TORCHCOINFER_AVX512 void gemm_pairs(const QuantMatrix& w, const Rows& x, const Pairs& pairs, float* decoded,
                                    float* sums) {
  constexpr int64_t K_EACH = Kind<Rows>::K_EACH, TILE_LANES = TILE_K / K_EACH;
  constexpr int64_t DECODED = MOST_CHUNK_K / K_EACH * COLUMNS;
  const Segments segments(w.K, w.group_size);
  const Values<BITS> values;
  const RowTiles row_tiles(x.rows);
  const int64_t row_lanes = x.stride / K_EACH;
  const float* panels = reinterpret_cast<const float*>(x.values);
  std::memset(sums, 0, pairs.count() * x.rows * COLUMNS * sizeof(float));
  const int64_t chunk = ceil_div(LEAST_CHUNK_K / TILE_K, segments.tiles_each);  // segments a chunk
  for (int64_t s0 = 0; s0 < segments.count; s0 += chunk) {
    const int64_t s1 = s0 + chunk < segments.count ? s0 + chunk : segments.count;
    const int64_t t0 = segments.begin(s0), t1 = segments.end(s1 - 1);
    for (int64_t p = 0; p < pairs.count(); ++p)
      for (int64_t b = 0; b < BLOCKS; ++b)
        for (int64_t t = t0; t < t1; ++t)
          decode(values, w.packed + (pairs.block(p, b) * segments.tiles + t) * tile_bytes(BITS), &x,
                 decoded + p * DECODED + (t - t0) * TILE_LANES * COLUMNS + b * BLOCK_N);
    for (int64_t s = s0; s < s1; ++s) {
      Scales scales[MOST_PAIRS];
      for (int64_t p = 0; p < pairs.count(); ++p)
        for (int64_t b = 0; b < BLOCKS; ++b) {
          const int64_t place = pairs.block(p, b) * segments.groups() + segments.group(s);
          scales[p].scale[b] = load_scales(w, place);
          scales[p].zero[b] = load_zeros(w, place);
        }
      const int64_t t = segments.begin(s), lanes = (segments.end(s) - t) * TILE_LANES;
      for (int64_t i = 0; i < row_tiles.count; ++i) {
        const int64_t row = row_tiles.begin(i), rows = row_tiles.begin(i + 1) - row;
        const float* panel = panels + row * row_lanes + t * TILE_LANES * rows;
        // the next tile's part of x is a jump away, where no hardware prefetcher looks
        const int64_t next = i + 1 < row_tiles.count ? i + 1 : 0, next_t = next ? t : segments.end(s);
        const int64_t next_row = row_tiles.begin(next), next_rows = row_tiles.begin(next + 1) - next_row;
        const float* next_panel = panels + next_row * row_lanes + next_t * TILE_LANES * next_rows;
        const int64_t ahead = ceil_div(lanes * next_rows, pairs.count() * LINE_LANES);
        for (int64_t p = 0; p < pairs.count(); ++p) {
          for (int64_t line = p * ahead; line < (p + 1) * ahead; ++line)
            _mm_prefetch(reinterpret_cast<const char*>(next_panel + line * LINE_LANES), _MM_HINT_T0);
          MULTIPLY<Rows>[rows](w, x, row, panel, lanes, decoded + p * DECODED + (t - t0) * TILE_LANES * COLUMNS,
                               scales[p], s, segments.count, sums + p * x.rows * COLUMNS);
        }
      }
    }
  }
}

// Scales of rows [m, m + 16), masked.
TORCHCOINFER_AVX512_INLINE __m512 row_scales(const FloatRows&, int64_t, __mmask16) {
  return _mm512_set1_ps(1.f);
}
TORCHCOINFER_AVX512_INLINE __m512 row_scales(const PairRows&, int64_t, __mmask16) {
  return _mm512_set1_ps(1.f);
}
TORCHCOINFER_AVX512_INLINE __m512 row_scales(const CodeRows& x, int64_t m, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, x.scales + m);
}

// Stores one block where neighboring rows, not columns, are neighbors in y (convolutions): 16 rows of a column at once.
template <typename Rows>
TORCHCOINFER_AVX512 void store_columns(const Rows& x, const float* sums, const Output& out, int64_t block) {
  const __m512i steps = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                           _mm512_set1_epi32(static_cast<int>(COLUMNS)));
  for (int64_t j = 0; j < BLOCK_N; ++j) {
    const int64_t n = block * BLOCK_N + j;
    if (n < out.first || n >= out.last) continue;
    const __m512 bias = _mm512_set1_ps(out.bias ? out.bias[n] : 0.f);
    for (int64_t m = 0; m < x.rows; m += 16) {
      const __mmask16 mask = x.rows - m >= 16 ? 0xffff : static_cast<__mmask16>((1 << (x.rows - m)) - 1);
      const __m512 column =
          _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, steps, sums + m * COLUMNS + j, sizeof(float));
      store_lanes(_mm512_fmadd_ps(column, row_scales(x, m, mask), bias), out, n * out.column_stride + m, mask);
    }
  }
}

template <int BITS, typename Rows>
TORCHCOINFER_AVX512 void gemm_bits(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end) {
  const int64_t panel_bytes = x.rows * x.stride * static_cast<int64_t>(sizeof *x.values);
  const int64_t together = (panel_bytes <= RESIDENT_BYTES ? 1 : MOST_PAIRS) * BLOCKS;
  const int64_t pairs_each = ceil_div(end - begin < together ? end - begin : together, BLOCKS);
  const Buffer<float> decoded(pairs_each * (MOST_CHUNK_K / Kind<Rows>::K_EACH) * COLUMNS);
  const Buffer<float> sums(pairs_each * x.rows * COLUMNS);
  for (int64_t block = begin; block < end; block += together) {
    const Pairs pairs{block, block + together < end ? block + together : end};
    gemm_pairs<BITS>(w, x, pairs, decoded.get(), sums.get());
    if (out.row_stride == 1 && out.column_stride != 1) {
      for (int64_t b = 0; b < pairs.end - block; ++b)
        store_columns(x, sums.get() + b / BLOCKS * x.rows * COLUMNS + b % BLOCKS * BLOCK_N, out, block + b);
      continue;
    }
    for (int64_t m = 0; m < x.rows; ++m)
      for (int64_t b = 0; b < pairs.end - block; ++b) {
        const float* place = sums.get() + (b / BLOCKS * x.rows + m) * COLUMNS + b % BLOCKS * BLOCK_N;
        const __m512 scale = _mm512_broadcastss_ps(_mm512_castps512_ps128(row_scales(x, m, 1)));
        store_sums(_mm512_mul_ps(_mm512_load_ps(place), scale), out, m, block + b);
      }
  }
}

}  // namespace

template <typename Rows>
void gemm(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end) {
  if (w.bits == 2) gemm_bits<2>(w, x, out, begin, end);
  if (w.bits == 3) gemm_bits<3>(w, x, out, begin, end);
  if (w.bits == 4) gemm_bits<4>(w, x, out, begin, end);
  if (w.bits == 5) gemm_bits<5>(w, x, out, begin, end);
  if (w.bits == 6) gemm_bits<6>(w, x, out, begin, end);
  if (w.bits == 8) gemm_bits<8>(w, x, out, begin, end);
}

template void gemm(const QuantMatrix&, const FloatRows&, const Output&, int64_t, int64_t);
template void gemm(const QuantMatrix&, const PairRows&, const Output&, int64_t, int64_t);
template void gemm(const QuantMatrix&, const CodeRows&, const Output&, int64_t, int64_t);

}  // namespace torchcoinfer::avx512

#endif
