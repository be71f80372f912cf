#include "cpu/gemv_avx2.h"

#if TORCHCOINFER_X86

#include <algorithm>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/decode_avx2.h"

namespace torchcoinfer::avx2 {
namespace {

constexpr int MOST_DIGIT_ROWS = 6;
constexpr int64_t AHEAD_BYTES = 2048;    // of the weights
constexpr int64_t WORK_GRAIN = 1 << 18;  // multiply-adds that are worth a thread
constexpr float CODE_TOP = 127.f;
constexpr int LEAST_EXPONENT = 27;  // biased: below, the factor that makes integers of x would overflow

int digit_count(const LinearCall& call) {
  return call.activation_bits == 8 ? 1 : call.x.dtype == Dtype::float32 ? 3 : 2;
}

// x as digits: bytes [rows][digits][KT * 32], sums of segments [S][rows][digits], scales [S][rows]; with one digit a
// row has the same scale in every segment, and its sums are scaled at the end.
struct DigitRows {
  const int8_t* bytes;
  const int32_t* sums;
  const float* scales;
  int64_t padded;
};
struct DigitTarget {
  int8_t* bytes;
  int32_t* sums;
  float* scales;
};

// Absolute maximum of `count` values, and 0, or NaN where one of them is not finite.
struct Extent {
  float largest;
  float poison;
};
TORCHCOINFER_AVX2 Extent extent(const float* x, int64_t count) {
  float largest[HALF] = {}, poison[HALF] = {};
  for (int64_t k = 0; k < count; k += HALF)
    for (int j = 0; j < HALF; ++j) {
      const float size = __builtin_fabsf(x[k + j]);
      largest[j] = size > largest[j] ? size : largest[j];
      poison[j] += x[k + j] * 0.f;
    }
  for (int j = 1; j < HALF; ++j) {
    largest[0] = std::max(largest[0], largest[j]);
    poison[0] += poison[j];
  }
  return {largest[0], poison[0]};
}

float power_of_two(int biased_exponent) {
  const uint32_t bits = static_cast<uint32_t>(biased_exponent) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A factor that makes integers of a segment's values, and what one of them stands for.
struct Step {
  float factor;
  float scale;
};
Step step_of(const Extent& here, int digits) {
  if (digits == 1) return {here.largest > 0 ? CODE_TOP / here.largest : 0.f, here.largest / CODE_TOP + here.poison};
  const int top_bit = 8 * digits - 2;
  uint32_t bits;
  std::memcpy(&bits, &here.largest, sizeof bits);
  // a mantissa close to 2 counts as the next power: the first digit ends at 127
  const int biased = std::max(static_cast<int>((bits + (1u << 17)) >> 23), LEAST_EXPONENT);
  return {power_of_two(254 + top_bit - biased), power_of_two(biased - top_bit) + here.poison};
}

// `count` values, times `factor` and rounded, to digits `padded` apart; sums: of each digit.
TORCHCOINFER_AVX2 void put_digits(const float* x, int64_t count, float factor, int digits, int64_t padded,
                                  int8_t* bytes, int32_t* sums) {
  int32_t integers[SEGMENT_K];
  for (int64_t k = 0; k < count; k += HALF) {
    __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + k), _mm256_set1_ps(factor));
    if (digits == 1) scaled = _mm256_min_ps(_mm256_max_ps(scaled, _mm256_set1_ps(-CODE_TOP)), _mm256_set1_ps(CODE_TOP));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(integers + k), _mm256_cvtps_epi32(scaled));
  }
  for (int d = digits - 1; d >= 0; --d) {
    int32_t sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      const int8_t low = static_cast<int8_t>(integers[k]);
      bytes[d * padded + k] = low;
      sum += low;
      integers[k] = (integers[k] + 128) >> 8;
    }
    sums[d] = sum;
  }
}

void put_row(const float* x, const Segments& segments, int64_t row, int64_t rows, int digits, const DigitTarget& out) {
  const int64_t padded = segments.tiles * TILE_K;
  Step step = step_of(extent(x, padded), digits);
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t begin = segments.begin(s) * TILE_K, count = segments.end(s) * TILE_K - begin;
    if (digits > 1) step = step_of(extent(x + begin, count), digits);
    out.scales[s * rows + row] = step.scale;
    put_digits(x + begin, count, step.factor, digits, padded, out.bytes + row * digits * padded + begin,
               out.sums + (s * rows + row) * digits);
  }
}

// Products of codes and digits that are added up in 16 bits: a pair is at most 2 * (2^b - 1) * 128.
constexpr int quads_together(int bits) {
  return bits <= 4 ? 8 : bits == 5 ? 4 : 2;
}

// Halves of a block that go together: both where their sums have room in the registers.
constexpr int halves_together(int bits, int rows) {
  return rows <= (bits == 8 ? 2 : 3) ? 2 : 1;
}

// parts [ROWS][HALVES] = digit rows times the halves h .. h + HALVES - 1 of tiles. 8-bit codes go as two of 4 bits.
template <int BITS, int ROWS, int HALVES>
TORCHCOINFER_AVX2_INLINE void multiply_halves(const uint8_t* tile, int64_t tiles, const int8_t* x, int64_t padded,
                                              int h, __m256i (*parts)[HALVES]) {
  constexpr bool SPLIT = BITS == 8;
  constexpr int TOGETHER = SPLIT ? quads_together(4) : quads_together(BITS);
  const __m256i ones = _mm256_set1_epi16(1), sixteens = _mm256_set1_epi16(16), nibble = _mm256_set1_epi8(15);
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < HALVES; ++i) parts[r][i] = _mm256_setzero_si256();
  for (int64_t t = 0; t < tiles; ++t, tile += tile_bytes(BITS), x += TILE_K) {
#pragma GCC unroll 8
    for (int line = 0; line < BITS && h == 0; ++line)
      _mm_prefetch(reinterpret_cast<const char*>(tile + AHEAD_BYTES + line * VECTOR_BYTES), _MM_HINT_T0);
    __m256i low[ROWS][HALVES], high[ROWS][HALVES];
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; ++q) {
      __m256i first[HALVES], second[HALVES];
#pragma GCC unroll 2
      for (int i = 0; i < HALVES; ++i) {
        const __m256i codes = decode_quad<BITS>(tile, q, h + i);
        first[i] = SPLIT ? _mm256_and_si256(codes, nibble) : codes;
        second[i] = SPLIT ? _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble) : codes;
      }
      const bool fresh = q % TOGETHER == 0, full = q % TOGETHER + 1 == TOGETHER;
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; ++r) {
        int32_t four;
        std::memcpy(&four, x + r * padded + 4 * q, sizeof four);
        const __m256i lane = _mm256_set1_epi32(four);
#pragma GCC unroll 2
        for (int i = 0; i < HALVES; ++i) {
          const __m256i product = _mm256_maddubs_epi16(first[i], lane);
          low[r][i] = fresh ? product : _mm256_add_epi16(low[r][i], product);
          if (full) parts[r][i] = _mm256_add_epi32(parts[r][i], _mm256_madd_epi16(low[r][i], ones));
          if (!SPLIT) continue;
          const __m256i upper = _mm256_maddubs_epi16(second[i], lane);
          high[r][i] = fresh ? upper : _mm256_add_epi16(high[r][i], upper);
          if (full) parts[r][i] = _mm256_add_epi32(parts[r][i], _mm256_madd_epi16(high[r][i], sixteens));
        }
      }
    }
  }
}

template <int BITS, int DIGITS, int HEIGHT>
TORCHCOINFER_AVX2 void multiply_block(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t block) {
  constexpr int ROWS = DIGITS * HEIGHT, HALVES = halves_together(BITS, ROWS);
  const Segments segments(w.K, w.group_size);
  const uint8_t* tile = w.packed + block * segments.tiles * tile_bytes(BITS);
  alignas(32) float sums[HEIGHT][BLOCK_N] = {};
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t begin = segments.begin(s), count = segments.end(s) - begin;
    const GroupValues group = load_group(w, block * segments.groups() + segments.group(s));
#pragma GCC unroll 2
    for (int h = 0; h < 2; h += HALVES) {
      __m256i parts[ROWS][HALVES];
      multiply_halves<BITS, ROWS, HALVES>(tile, count, x.bytes + begin * TILE_K, x.padded, h, parts);
#pragma GCC unroll 6
      for (int place = 0; place < HEIGHT * HALVES; ++place) {
        const int m = place / HALVES, i = place % HALVES;
        __m256 whole = _mm256_setzero_ps();
#pragma GCC unroll 3
        for (int d = 0; d < DIGITS; ++d) {
          const __m256i digit_sum = _mm256_set1_epi32(x.sums[(s * HEIGHT + m) * DIGITS + d]);
          const __m256i shift = _mm256_mullo_epi32(group.zero[h + i], digit_sum);
          const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(parts[m * DIGITS + d][i], shift));
          whole = _mm256_fmadd_ps(whole, _mm256_set1_ps(256.f), exact);
        }
        if (DIGITS > 1) whole = _mm256_mul_ps(whole, _mm256_set1_ps(x.scales[s * HEIGHT + m]));
        float* sum = sums[m] + HALF * (h + i);
        _mm256_store_ps(sum, _mm256_fmadd_ps(group.scale[h + i], whole, _mm256_load_ps(sum)));
      }
    }
    tile += count * tile_bytes(BITS);
  }
  for (int m = 0; m < HEIGHT; ++m) {
    if (DIGITS == 1 && segments.count)
      for (int n = 0; n < BLOCK_N; ++n) sums[m][n] *= x.scales[m];
    store_row(sums[m], out, m, block);
  }
}

using MultiplyBlock = void (*)(const QuantMatrix&, const DigitRows&, const Output&, int64_t);

template <int BITS, int DIGITS, int HEIGHT = MOST_DIGIT_ROWS / DIGITS>
MultiplyBlock of_height(int64_t height) {
  if (height == HEIGHT) return multiply_block<BITS, DIGITS, HEIGHT>;
  if constexpr (HEIGHT > 1) return of_height<BITS, DIGITS, HEIGHT - 1>(height);
  return nullptr;
}
template <int BITS>
MultiplyBlock of_digits(int digits, int64_t height) {
  if (digits == 1) return of_height<BITS, 1>(height);
  return digits == 2 ? of_height<BITS, 2>(height) : of_height<BITS, 3>(height);
}
MultiplyBlock multiply_block_of(int bits, int digits, int64_t height) {
  if (bits == 2) return of_digits<2>(digits, height);
  if (bits == 3) return of_digits<3>(digits, height);
  if (bits == 4) return of_digits<4>(digits, height);
  if (bits == 5) return of_digits<5>(digits, height);
  return bits == 6 ? of_digits<6>(digits, height) : of_digits<8>(digits, height);
}

}  // namespace

bool are_few(const LinearCall& call) {
  return call.rows * digit_count(call) <= MOST_DIGIT_ROWS;
}

void run_few(const LinearCall& call, const ParallelFor& parallel) {
  const Segments segments(call.weight.K, call.weight.group_size);
  const int digits = digit_count(call);
  const int64_t rows = call.rows, padded = segments.tiles * TILE_K;
  const Buffer<float> values(rows * padded);
  const Buffer<int8_t> bytes(rows * digits * padded);
  const Buffer<int32_t> sums(rows * digits * segments.count);
  const Buffer<float> scales(rows * segments.count);
  float_rows(call.x, segments, Isa::avx2, 0, rows, values.get(), nullptr);
  for (int64_t m = 0; m < rows; ++m)
    put_row(values.get() + m * padded, segments, m, rows, digits, {bytes.get(), sums.get(), scales.get()});
  const DigitRows x{bytes.get(), sums.get(), scales.get(), padded};
  const MultiplyBlock multiply = multiply_block_of(call.weight.bits, digits, rows);
  const int64_t first = call.out.first / BLOCK_N, last = ceil_div(call.out.last, BLOCK_N);
  parallel(last - first, ceil_div(WORK_GRAIN, std::max<int64_t>(BLOCK_N * call.weight.K * rows, 1)),
           [&](int64_t begin, int64_t end) {
             for (int64_t block = begin; block < end; ++block) multiply(call.weight, x, call.out, first + block);
           });
}

}  // namespace torchcoinfer::avx2

#endif
