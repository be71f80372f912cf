// x to int8 digits (digits_neon.h), with the arithmetic of digit_rows_avx512.cpp.

#include "cpu/digits_neon.h"

#if TORCHCOINFER_ARM

#include <cstring>

#include "cpu/buffer.h"
#include "cpu/decode_neon.h"

namespace torchcoinfer::neon {
namespace {

constexpr int STEP = 16;  // k at a time
constexpr int MOST_DIGITS = 3;
constexpr float CODE_TOP = 127.f;
constexpr int LEAST_EXPONENT = 27;  // biased: below, the factor that makes integers of x would overflow

// Absolute maximum of `count` values, a multiple of STEP, and 0, or NaN where one of them is not finite.
struct Extent {
  float largest;
  float poison;
};
Extent extent(const float* x, int64_t count) {
  float32x4_t largest = vdupq_n_f32(0), poison = vdupq_n_f32(0);
  for (int64_t k = 0; k < count; k += 4) {
    const float32x4_t values = vld1q_f32(x + k);
    largest = vmaxnmq_f32(largest, vabsq_f32(values));
    poison = vfmaq_n_f32(poison, values, 0.f);
  }
  return {vmaxnmvq_f32(largest), vaddvq_f32(poison)};
}

// One row of x, digit by digit: digits[d] [KT * 32], starts[d] [S].
struct RowDigits {
  int8_t* digits[MOST_DIGITS];
  int32_t* starts[MOST_DIGITS];
};

TORCHCOINFER_NEON_INLINE int8x16_t low_bytes(const int32x4_t* integers) {
  const int16x8_t low = vcombine_s16(vmovn_s32(integers[0]), vmovn_s32(integers[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(integers[2]), vmovn_s32(integers[3]));
  return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}

// Columns [begin, end) of one segment, times `factor` and rounded, to digits.
template <int DIGITS>
void put_segment(const float* x, int64_t begin, int64_t end, float factor, int64_t segment, const RowDigits& out) {
  int32x4_t sums[DIGITS];
  for (int d = 0; d < DIGITS; ++d) sums[d] = vdupq_n_s32(0);
  for (int64_t k = begin; k < end; k += STEP) {
    int32x4_t integers[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      float32x4_t scaled = vmulq_n_f32(vld1q_f32(x + k + 4 * i), factor);
      if (DIGITS == 1) scaled = vminq_f32(vmaxq_f32(scaled, vdupq_n_f32(-CODE_TOP)), vdupq_n_f32(CODE_TOP));
      integers[i] = vcvtnq_s32_f32(scaled);
    }
#pragma GCC unroll 3
    for (int d = DIGITS - 1; d >= 0; --d) {
      const int8x16_t bytes = low_bytes(integers);
      vst1q_s8(out.digits[d] + k, bytes);
      sums[d] = vpadalq_s16(sums[d], vpaddlq_s8(bytes));
      if (d == 0) break;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) integers[i] = vshrq_n_s32(vaddq_s32(integers[i], vdupq_n_s32(128)), 8);
    }
  }
  for (int d = 0; d < DIGITS; ++d) out.starts[d][segment] = -vaddvq_s32(sums[d]);
}

float power_of_two(int biased_exponent) {
  const uint32_t bits = static_cast<uint32_t>(biased_exponent) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// int8 activations: scale = absmax / 127, code = rint(x * (127 / absmax)).
void put_codes(const float* x, const Segments& segments, const RowDigits& out, float* scales, int64_t) {
  const Extent all = extent(x, segments.tiles * TILE_K);
  const float inverse = all.largest > 0 ? CODE_TOP / all.largest : 0.f;
  *scales = all.largest / CODE_TOP + all.poison;
  for (int64_t s = 0; s < segments.count; ++s)
    put_segment<1>(x, segments.begin(s) * TILE_K, segments.end(s) * TILE_K, inverse, s, out);
}

// Fixed point: the largest value of a segment takes 8 * DIGITS - 2 bits and a sign. Scales lie scale_step apart.
template <int DIGITS>
void put_fixed(const float* x, const Segments& segments, const RowDigits& out, float* scales, int64_t scale_step) {
  constexpr int TOP_BIT = 8 * DIGITS - 2;
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t begin = segments.begin(s) * TILE_K, end = segments.end(s) * TILE_K;
    const Extent here = extent(x + begin, end - begin);
    uint32_t bits;
    std::memcpy(&bits, &here.largest, sizeof bits);
    // a mantissa close to 2 counts as the next power: the first digit ends at 127
    const int exponent = static_cast<int>((bits + (1u << 17)) >> 23);
    const int biased = exponent > LEAST_EXPONENT ? exponent : LEAST_EXPONENT;
    scales[s * scale_step] = power_of_two(biased - TOP_BIT) + here.poison;
    put_segment<DIGITS>(x, begin, end, power_of_two(254 + TOP_BIT - biased), s, out);
  }
}

// Spreads a digit row over its places in the tile: UNIT bytes every `step` bytes.
template <int UNIT>
void spread(const int8_t* digits, int64_t count, int64_t step, int8_t* out) {
  for (int64_t k = 0; k < count; k += UNIT, out += step) std::memcpy(out, digits + k, UNIT);
}

}  // namespace

void digit_rows(const SourceRows& x, const DigitTiles& tiles, const Segments& segments, int digits, bool pairs,
                int64_t row_bytes, const DigitTarget& out, int64_t begin, int64_t end) {
  const auto put = digits == 1 ? put_codes : digits == 2 ? put_fixed<2> : put_fixed<3>;
  const int64_t padded = segments.tiles * TILE_K, scales_each = digits == 1 ? 1 : segments.count;
  const Buffer<float> row(padded);
  const Buffer<int8_t> bytes(padded * MOST_DIGITS);
  const Buffer<int32_t> sums(segments.count * MOST_DIGITS);
  RowDigits target;
  for (int d = 0; d < MOST_DIGITS; ++d) {
    target.digits[d] = bytes.get() + d * padded;
    target.starts[d] = sums.get() + d * segments.count;
  }
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tiles.begin(tile), height = tiles.begin(tile + 1) - first, R = height * digits;
    int8_t* lanes = out.lanes + first * row_bytes;
    int32_t* starts = out.starts + first * segments.count * digits;
    for (int64_t m = 0; m < height; ++m) {
      SourceRows one = x;
      one.data = static_cast<const char*>(x.data) + (first + m) * x.row_stride * dtype_bytes(x.dtype);
      float_rows(one, segments, Isa::neon, 0, 1, row.get(), nullptr);
      put(row.get(), segments, target, out.scales + first * scales_each + m, height);
      for (int64_t d = 0; d < digits; ++d) {
        const int64_t r = m * digits + d;
        if (pairs)
          spread<8>(target.digits[d], padded, ceil_div(R, 2) * 16, lanes + r * 8);
        else
          spread<4>(target.digits[d], padded, R * 4, lanes + r * 4);
        for (int64_t s = 0; s < segments.count; ++s) starts[s * R + r] = target.starts[d][s];
      }
    }
    if (!pairs || R % 2 == 0) continue;
    for (int64_t k = 0; k < padded; k += 8) std::memset(lanes + k / 8 * (R + 1) * 8 + R * 8, 0, 8);
  }
}

}  // namespace torchcoinfer::neon

#endif
