// x to int8 digits (digits_avx512.h).

#include "cpu/isa.h"

#if TORCHCOINFER_X86

#include <algorithm>
#include <cstring>

#include "cpu/decode_avx512.h"
#include "cpu/digits_avx512.h"
#include "cpu/turn_avx512.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int STEP = 64;  // k at a time: 16 lanes of each digit
constexpr int QUARTER = 16;
constexpr float CODE_TOP = 127.f;
constexpr int LEAST_EXPONENT = 27;  // biased: below, the factor that makes integers of x would overflow

// Sixteen values of x from `k` on, zeros beyond K.
template <Dtype DTYPE>
TORCHCOINFER_AVX512_INLINE __m512 load_sixteen(const SourceRows& x, int64_t row, int64_t k) {
  const int64_t left = x.K - k, place = row * x.row_stride + k;
  if (left >= QUARTER) return load_floats(x.data, DTYPE, place);
  if (left <= 0) return _mm512_setzero_ps();
  const __mmask16 mask = static_cast<__mmask16>((1 << left) - 1);
  if (DTYPE == Dtype::float32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x.data) + place);
  const __m256i halves = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x.data) + place);
  if (DTYPE == Dtype::float16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Absolute maximum of columns [begin, end), whole tiles, and 0, or NaN where one of them is not finite.
struct Extent {
  float largest;
  float poison;
};
template <Dtype DTYPE>
TORCHCOINFER_AVX512_INLINE Extent extent(const SourceRows& x, int64_t row, int64_t begin, int64_t end) {
  __m512 largest[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, poison[2] = {largest[0], largest[0]};
  for (int64_t k = begin; k < end; k += 2 * QUARTER)
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m512 values = load_sixteen<DTYPE>(x, row, k + i * QUARTER);
      largest[i] = _mm512_max_ps(_mm512_abs_ps(values), largest[i]);
      poison[i] = _mm512_fmadd_ps(values, _mm512_setzero_ps(), poison[i]);
    }
  return {_mm512_reduce_max_ps(_mm512_max_ps(largest[0], largest[1])),
          _mm512_reduce_add_ps(_mm512_add_ps(poison[0], poison[1]))};
}

// Where the digits of one row go, four columns a lane: those of columns [unit * i, unit * (i + 1)) of digit d begin at
// lanes[i * unit_step + d * digit_step] and lie lane_step apart; where that is 1, units are filled up with zeros.
struct RowTarget {
  int32_t* lanes;
  int32_t* starts;
  float* scales;
  int64_t unit;
  int64_t unit_step;
  int64_t digit_step;
  int64_t lane_step;
  int64_t start_step;  // of segments
  int64_t scale_step;  // of segments
  int factor;
};

// The low bytes of 64 integers, in order.
TORCHCOINFER_AVX512_INLINE __m512i low_bytes(const __m512i* integers) {
  const __m512i mask = _mm512_set1_epi32(0xff);
  __m512i masked[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) masked[i] = _mm512_and_si512(integers[i], mask);
  const __m512i packed = _mm512_packus_epi16(_mm512_packus_epi32(masked[0], masked[1]),
                                             _mm512_packus_epi32(masked[2], masked[3]));
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  return _mm512_permutexvar_epi32(order, packed);
}

// Where the digits of one row alone go: element j of vector v is digit (16 v + j) % DIGITS of lane (16 v + j) / DIGITS,
// at 16 for the second digit as a permutation of two vectors counts.
template <int DIGITS>
struct Weave {
  alignas(64) int32_t order[DIGITS][16];
  uint16_t third[DIGITS];

  constexpr Weave() : order(), third() {
    for (int j = 0; j < 16 * DIGITS; ++j) {
      order[j / 16][j % 16] = j / DIGITS + (j % DIGITS == 1 ? 16 : 0);
      if (j % DIGITS == 2) third[j / 16] = static_cast<uint16_t>(third[j / 16] | 1 << j % 16);
    }
  }
};

// Stores the first `count` lanes, 8 or 16, of every digit: [lanes][DIGITS].
template <int DIGITS>
TORCHCOINFER_AVX512_INLINE void store_woven(const __m512i* lanes, int64_t count, int32_t* place) {
  static constexpr Weave<DIGITS> WEAVE;
#pragma GCC unroll 3
  for (int v = 0; v < DIGITS; ++v) {
    const int64_t left = count * DIGITS - 16 * v;
    const __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? static_cast<__mmask16>((1 << left) - 1) : 0;
    const __m512i order = _mm512_load_si512(WEAVE.order[v]);
    __m512i woven = _mm512_permutex2var_epi32(lanes[0], order, lanes[1]);
    if (DIGITS == 3) woven = _mm512_mask_permutexvar_epi32(woven, WEAVE.third[v], order, lanes[DIGITS - 1]);
    _mm512_mask_storeu_epi32(place + 16 * v, mask, woven);
  }
}

// Columns [begin, end) of one segment, times `factor` and rounded, to digits.
template <Dtype DTYPE, int DIGITS>
TORCHCOINFER_AVX512_INLINE void put_segment(const SourceRows& x, int64_t row, int64_t begin, int64_t end, float factor,
                                            const RowTarget& out, int64_t segment) {
  const __m512 factors = _mm512_set1_ps(factor), top = _mm512_set1_ps(CODE_TOP), bottom = _mm512_set1_ps(-CODE_TOP);
  const __m512i steps = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                           _mm512_set1_epi32(static_cast<int>(out.lane_step)));
  __m512i sums[DIGITS];
  for (int d = 0; d < DIGITS; ++d) sums[d] = _mm512_setzero_si512();
  for (int64_t k = begin; k < end; k += STEP) {
    __m512i integers[STEP / QUARTER];
#pragma GCC unroll 4
    for (int i = 0; i < STEP / QUARTER; ++i) {
      __m512 scaled = _mm512_setzero_ps();
      if (k + i * QUARTER < end) scaled = _mm512_mul_ps(load_sixteen<DTYPE>(x, row, k + i * QUARTER), factors);
      if (DIGITS == 1) scaled = _mm512_min_ps(_mm512_max_ps(scaled, bottom), top);
      integers[i] = _mm512_cvtps_epi32(scaled);
    }
    const int64_t count = std::clamp(end - k, out.unit, int64_t{STEP}) / 4;
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
    __m512i lanes[DIGITS];
#pragma GCC unroll 3
    for (int d = DIGITS - 1; d >= 0; --d) {
      lanes[d] = low_bytes(integers);
      sums[d] = _mm512_dpbusd_epi32(sums[d], bytes_of(1), lanes[d]);
      if (d == 0) break;
#pragma GCC unroll 4
      for (int i = 0; i < STEP / QUARTER; ++i)
        integers[i] = _mm512_srai_epi32(_mm512_add_epi32(integers[i], _mm512_set1_epi32(128)), 8);
    }
    int32_t* place = out.lanes + k / out.unit * out.unit_step;
    if constexpr (DIGITS > 1)
      if (out.lane_step == DIGITS && out.digit_step == 1) {
        store_woven<DIGITS>(lanes, count, place);
        continue;
      }
#pragma GCC unroll 3
    for (int d = 0; d < DIGITS; ++d, place += out.digit_step) {
      if (out.lane_step == 1)
        _mm512_mask_storeu_epi32(place, mask, lanes[d]);
      else
        _mm512_mask_i32scatter_epi32(place, mask, steps, lanes[d], sizeof(int32_t));
    }
  }
  if (DIGITS > 1) {  // the first two digits' sums are put together before they are used
    sums[1] = _mm512_add_epi32(_mm512_slli_epi32(sums[0], 8), sums[1]);
    sums[0] = _mm512_setzero_si512();
  }
  for (int d = 0; d < DIGITS; ++d)
    out.starts[segment * out.start_step + d] = -out.factor * _mm512_reduce_add_epi32(sums[d]);
}

// int8 activations: scale = absmax / 127, code = rint(x * (127 / absmax)). The factor of the codes.
template <Dtype DTYPE>
TORCHCOINFER_AVX512 float code_factor(const SourceRows& x, int64_t row, float* scale) {
  const Extent all = extent<DTYPE>(x, row, 0, x.K);
  *scale = (x.in_codes ? 1.f : all.largest / CODE_TOP) + all.poison;
  return x.in_codes ? 1.f : all.largest > 0 ? CODE_TOP / all.largest : 0.f;
}

inline float power_of_two(int biased_exponent) {
  const uint32_t bits = static_cast<uint32_t>(biased_exponent) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Fixed point: the largest value of a segment takes 8 * DIGITS - 2 bits and a sign. The factor of its integers.
template <Dtype DTYPE, int DIGITS>
TORCHCOINFER_AVX512 float fixed_factor(const SourceRows& x, int64_t row, int64_t begin, int64_t end, float* scale) {
  constexpr int TOP_BIT = 8 * DIGITS - 2;
  const Extent here = extent<DTYPE>(x, row, begin, end);
  uint32_t bits;
  std::memcpy(&bits, &here.largest, sizeof bits);
  // a mantissa close to 2 counts as the next power: the first digit ends at 127
  const int exponent = static_cast<int>((bits + (1u << 17)) >> 23);
  const int biased = exponent > LEAST_EXPONENT ? exponent : LEAST_EXPONENT;
  *scale = power_of_two(biased - TOP_BIT) + here.poison;
  return power_of_two(254 + TOP_BIT - biased);
}

// One row. `scale_step`: of segments, where they have scales of their own.
template <Dtype DTYPE, int DIGITS>
TORCHCOINFER_AVX512 void put_row(const SourceRows& x, int64_t row, const Segments& segments, const RowTarget& out) {
  float factor = 0;
  if (DIGITS == 1) factor = code_factor<DTYPE>(x, row, out.scales);
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t begin = segments.begin(s) * TILE_K, end = segments.end(s) * TILE_K;
    if (DIGITS > 1) factor = fixed_factor<DTYPE, DIGITS>(x, row, begin, end, out.scales + s * out.scale_step);
    put_segment<DTYPE, DIGITS>(x, row, begin, end, factor, out, s);
  }
}

// A row tile: each row's digits of a segment as vectors, which are then turned. Row by row, lanes would have to be
// scattered, which takes longer than all the rest.
template <Dtype DTYPE, int DIGITS>
TORCHCOINFER_AVX512 void put_tile(const SourceRows& x, int64_t row, int64_t height, const Segments& segments,
                                  int factor, const DigitTarget& out) {
  const int64_t wide = height * DIGITS;
  if (height == 1) {
    put_row<DTYPE, DIGITS>(x, row, segments, {out.lanes, out.starts, out.scales, 4, wide, 1, wide, wide, 1, factor});
    return;
  }
  alignas(64) int32_t steps[SEGMENT_K / STEP * 16 * DigitTiles::ALONE];
  float factors[DigitTiles::ALONE];
  for (int64_t m = 0; DIGITS == 1 && m < height; ++m) factors[m] = code_factor<DTYPE>(x, row + m, out.scales + m);
  int32_t* lanes = out.lanes;
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t begin = segments.begin(s) * TILE_K, end = segments.end(s) * TILE_K;
    for (int64_t m = 0; m < height; ++m) {
      if (DIGITS > 1)
        factors[m] = fixed_factor<DTYPE, DIGITS>(x, row + m, begin, end, out.scales + s * height + m);
      int32_t* place = steps + m * DIGITS * 16 - begin / STEP * (16 * wide);
      put_segment<DTYPE, DIGITS>(x, row + m, begin, end, factors[m],
                                 {place, out.starts + m * DIGITS, nullptr, STEP, 16 * wide, 16, 1, wide, 0, factor}, s);
    }
    turn_steps(steps, wide, (end - begin) / 4, lanes);
    lanes += (end - begin) / 4 * wide;
  }
}

// The function for a dtype and a number of digits: one, or as many as the dtype takes.
template <template <Dtype, int> typename Function>
auto of_dtype(Dtype dtype, int digits) {
  if (dtype == Dtype::float32) return digits == 1 ? Function<Dtype::float32, 1>::run : Function<Dtype::float32, 3>::run;
  if (dtype == Dtype::float16) return digits == 1 ? Function<Dtype::float16, 1>::run : Function<Dtype::float16, 2>::run;
  return digits == 1 ? Function<Dtype::bfloat16, 1>::run : Function<Dtype::bfloat16, 2>::run;
}
template <Dtype DTYPE, int DIGITS>
struct PutRow {
  static constexpr auto run = put_row<DTYPE, DIGITS>;
};
template <Dtype DTYPE, int DIGITS>
struct PutTile {
  static constexpr auto run = put_tile<DTYPE, DIGITS>;
};

}  // namespace

void digit_rows(const SourceRows& x, int64_t row, const DigitTiles& tiles, const Segments& segments, int digits,
                int factor, const DigitTarget& out, int64_t begin, int64_t end) {
  const auto put = of_dtype<PutTile>(x.dtype, digits);
  const int64_t row_lanes = segments.tiles * QUADS * digits, scales_each = digits == 1 ? 1 : segments.count;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tiles.begin(tile), height = tiles.begin(tile + 1) - first;
    put(x, row + first, height, segments, factor,
        {out.lanes + first * row_lanes, out.starts + first * segments.count * digits, out.scales + first * scales_each});
  }
}

void digit_slabs(const SourceRows& x, const Slabs& slabs, const Segments& segments, int factor, const DigitTarget& out,
                 int64_t begin, int64_t end) {
  const auto put = of_dtype<PutRow>(x.dtype, slabs.digits);
  const int64_t plane_lanes = slabs.height * slabs.unit_k / 4, row_lanes = slabs.unit_k / 4, wide = slabs.slab_rows();
  const int64_t scales_each = slabs.digits == 1 ? 1 : segments.count;
  for (int64_t slab = begin; slab < end; ++slab) {
    int32_t* lanes = out.lanes + slab * slabs.slab_lanes();
    int32_t* starts = out.starts + slab * segments.count * wide * slabs.digits;
    float* scales = out.scales + slab * scales_each * wide;
    const int64_t first = slab * wide, rows = std::min(wide, slabs.rows - first);
    if (rows < wide) std::memset(lanes, 0, slabs.slab_lanes() * sizeof *lanes);
    for (int64_t m = 0; m < rows; ++m)
      put(x, first + m, segments,
          {lanes + m / slabs.height * plane_lanes + m % slabs.height * row_lanes, starts + m * slabs.digits, scales + m,
           slabs.unit_k, slabs.planes * plane_lanes, plane_lanes, 1, wide * slabs.digits, wide, factor});
  }
}

}  // namespace torchcoinfer::avx512

#endif
