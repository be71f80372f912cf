// Many rows of x: two n-blocks (32 columns) at a time, a chunk of K decoded into L1, then tiles of up to 12 rows x 32
// columns of sums in registers. AVX-512.

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
constexpr int64_t TILE_ROWS = 12;  // 24 of the 32 registers are sums
constexpr int64_t CHUNK_K = 128;   // columns of W decoded at once, at least; a segment at most

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

TORCHCOINFER_AVX512_INLINE __m512 multiply_add(__m512 w, __m512i x, __m512 sum, const FloatRows*) {
  return _mm512_fmadd_ps(w, _mm512_castsi512_ps(x), sum);
}
TORCHCOINFER_AVX512_INLINE __m512 multiply_add(__m512 w, __m512i x, __m512 sum, const PairRows*) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(w), (__m512bh)x);
}
TORCHCOINFER_AVX512_INLINE __m512i multiply_add(__m512 w, __m512i x, __m512i sum, const CodeRows*) {
  return _mm512_dpbusd_epi32(sum, _mm512_castps_si512(w), x);
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

template <typename T>
TORCHCOINFER_AVX512_INLINE __m512i broadcast_lane(const T* data) {
  int bits;
  std::memcpy(&bits, data, sizeof bits);
  return _mm512_set1_epi32(bits);
}

// Scales and zero points of the pair of blocks in one segment.
struct Scales {
  __m512 scale[BLOCKS];
  __m512i zero[BLOCKS];
};

TORCHCOINFER_AVX512_INLINE void add_sums(float* sums, const Scales& scales, int b, __m512 part, bool offset, int center,
                                         float x_sum) {
  if (offset) {
    const __m512 zero = _mm512_cvtepi32_ps(_mm512_sub_epi32(scales.zero[b], _mm512_set1_epi32(center)));
    part = _mm512_fnmadd_ps(zero, _mm512_set1_ps(x_sum), part);
  }
  float* place = sums + b * BLOCK_N;
  _mm512_store_ps(place, _mm512_fmadd_ps(scales.scale[b], part, _mm512_load_ps(place)));
}
TORCHCOINFER_AVX512_INLINE void add_sums(float* sums, const Scales& scales, int b, __m512i part, bool, int,
                                         int32_t x_sum) {
  const __m512i exact = _mm512_sub_epi32(part, _mm512_mullo_epi32(scales.zero[b], _mm512_set1_epi32(x_sum)));
  float* place = sums + b * BLOCK_N;
  _mm512_store_ps(place, _mm512_fmadd_ps(scales.scale[b], _mm512_cvtepi32_ps(exact), _mm512_load_ps(place)));
}

// ROWS rows from `row` on times the 32 decoded columns of one segment: sums[row][32] += scale * (part - zero * x sum).
template <typename Rows, int ROWS>
TORCHCOINFER_AVX512 void multiply_segment(const QuantMatrix& w, const Rows& x, int64_t row, int64_t k, int64_t k_count,
                                          const float* decoded, const Scales& scales, int64_t segment,
                                          int64_t segment_count, float* sums) {
  using Sum = typename Kind<Rows>::Sum;
  constexpr int K_EACH = Kind<Rows>::K_EACH;
  Sum parts[ROWS][BLOCKS];
#pragma GCC unroll 12
  for (int m = 0; m < ROWS; ++m) parts[m][0] = parts[m][1] = Sum{};
  const auto* first = x.values + row * x.stride + k;
  for (int64_t i = 0; i < k_count; i += K_EACH, decoded += COLUMNS, first += K_EACH) {
    const __m512 left = _mm512_load_ps(decoded), right = _mm512_load_ps(decoded + BLOCK_N);
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m) {
      const __m512i lane = broadcast_lane(first + m * x.stride);
      parts[m][0] = multiply_add(left, lane, parts[m][0], &x);
      parts[m][1] = multiply_add(right, lane, parts[m][1], &x);
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < ROWS; ++m) {
    const auto x_sum = x.sums ? x.sums[(row + m) * segment_count + segment] : 0;
    add_sums(sums + (row + m) * COLUMNS, scales, 0, parts[m][0], w.zeros != nullptr, implicit_zero(w.bits), x_sum);
    add_sums(sums + (row + m) * COLUMNS, scales, 1, parts[m][1], w.zeros != nullptr, implicit_zero(w.bits), x_sum);
  }
}

template <typename Rows>
using MultiplySegment = void (*)(const QuantMatrix&, const Rows&, int64_t, int64_t, int64_t, const float*,
                                 const Scales&, int64_t, int64_t, float*);

template <typename Rows>
constexpr MultiplySegment<Rows> MULTIPLY[TILE_ROWS + 1] = {nullptr,
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

// All rows times the two blocks from `block` on; where the last is missing, its neighbor stands in for it.
template <int BITS, typename Rows>
TORCHCOINFER_AVX512 void gemm_blocks(const QuantMatrix& w, const Rows& x, int64_t block, int64_t count,
                                     float* decoded, float* sums) {
  constexpr int64_t TILE_LANES = TILE_K / Kind<Rows>::K_EACH * COLUMNS;
  const Segments segments(w.K, w.group_size);
  const Values<BITS> values;
  const int64_t second = block + count - 1;
  const int64_t row_tiles = ceil_div(x.rows, TILE_ROWS);
  std::memset(sums, 0, x.rows * COLUMNS * sizeof(float));
  const int64_t chunk = ceil_div(CHUNK_K / TILE_K, segments.tiles_each);  // segments a chunk
  for (int64_t s0 = 0; s0 < segments.count; s0 += chunk) {
    const int64_t s1 = s0 + chunk < segments.count ? s0 + chunk : segments.count;
    const int64_t t0 = segments.begin(s0), t1 = segments.end(s1 - 1);
    for (int64_t t = t0; t < t1; ++t) {
      float* lanes = decoded + (t - t0) * TILE_LANES;
      decode(values, w.packed + (block * segments.tiles + t) * tile_bytes(BITS), &x, lanes);
      decode(values, w.packed + (second * segments.tiles + t) * tile_bytes(BITS), &x, lanes + BLOCK_N);
    }
    for (int64_t i = 0; i < row_tiles; ++i) {  // tiles of nearly equal height
      const int64_t row = i * x.rows / row_tiles, rows = (i + 1) * x.rows / row_tiles - row;
      for (int64_t s = s0; s < s1; ++s) {
        const int64_t left = block * segments.groups() + segments.group(s);
        const int64_t right = second * segments.groups() + segments.group(s);
        const Scales scales{{load_scales(w, left), load_scales(w, right)}, {load_zeros(w, left), load_zeros(w, right)}};
        const int64_t t = segments.begin(s);
        MULTIPLY<Rows>[rows](w, x, row, t * TILE_K, (segments.end(s) - t) * TILE_K, decoded + (t - t0) * TILE_LANES,
                             scales, s, segments.count, sums);
      }
    }
  }
}

TORCHCOINFER_AVX512_INLINE __m512 row_scale(const FloatRows&, int64_t) {
  return _mm512_set1_ps(1.f);
}
TORCHCOINFER_AVX512_INLINE __m512 row_scale(const PairRows&, int64_t) {
  return _mm512_set1_ps(1.f);
}
TORCHCOINFER_AVX512_INLINE __m512 row_scale(const CodeRows& x, int64_t row) {
  return _mm512_set1_ps(x.scales[row]);
}

template <int BITS, typename Rows>
TORCHCOINFER_AVX512 void gemm_bits(const QuantMatrix& w, const Rows& x, const Output& out, int64_t begin, int64_t end) {
  const Buffer<float> decoded((CHUNK_K > SEGMENT_K ? CHUNK_K : SEGMENT_K) / Kind<Rows>::K_EACH * COLUMNS);
  const Buffer<float> sums(x.rows * COLUMNS);
  for (int64_t block = begin; block < end; block += BLOCKS) {
    const int64_t count = end - block < BLOCKS ? end - block : BLOCKS;
    gemm_blocks<BITS>(w, x, block, count, decoded.get(), sums.get());
    for (int64_t m = 0; m < x.rows; ++m)
      for (int64_t b = 0; b < count; ++b) {
        const __m512 sum = _mm512_load_ps(sums.get() + m * COLUMNS + b * BLOCK_N);
        store_sums(_mm512_mul_ps(sum, row_scale(x, m)), out, m, block + b);
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

namespace torchcoinfer {

TORCHCOINFER_LINEAR_KERNEL(linear_float_avx512, FloatRows) {
  few ? avx512::gemv(w, x, out, begin, end) : avx512::gemm(w, x, out, begin, end);
}
TORCHCOINFER_LINEAR_KERNEL(linear_pairs_avx512, PairRows) {
  few ? avx512::gemv(w, x, out, begin, end) : avx512::gemm(w, x, out, begin, end);
}
TORCHCOINFER_LINEAR_KERNEL(linear_codes_avx512, CodeRows) {
  few ? avx512::gemv(w, x, out, begin, end) : avx512::gemm(w, x, out, begin, end);
}

}  // namespace torchcoinfer

#endif
