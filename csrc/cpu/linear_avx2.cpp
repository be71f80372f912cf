// AVX2 + FMA: one n-block (two registers of 8 lanes) at a time, a chunk of K decoded into L1, tiles of up to 6 rows.

#include "cpu/isa.h"

#if TORCHCOINFER_X86

#include <cstring>

#include "cpu/buffer.h"
#include "cpu/decode_avx2.h"
#include "cpu/linear.h"

namespace torchcoinfer::avx2 {
namespace {

constexpr int64_t CHUNK_TILES = 4;  // tiles decoded at once
constexpr int64_t FLOAT_ROWS = 6;   // rows of a register tile: 12 sums
constexpr int64_t CODE_ROWS = 4;

// Floats code - 2^(b-1), k-major: out[k][16].
template <int BITS>
TORCHCOINFER_AVX2_INLINE void decode_floats(const uint8_t* tile, float* out) {
  const __m256i center = _mm256_set1_epi8(static_cast<char>(implicit_zero(BITS)));
#pragma GCC unroll 8
  for (int q = 0; q < QUADS; ++q)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i codes = _mm256_sub_epi8(decode_quad<BITS>(tile, q, h), center);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256i lanes = _mm256_srai_epi32(_mm256_slli_epi32(codes, 24 - 8 * i), 24);
        _mm256_store_ps(out + (4 * q + i) * BLOCK_N + HALF * h, _mm256_cvtepi32_ps(lanes));
      }
    }
}

template <int BITS>
TORCHCOINFER_AVX2_INLINE void decode_bytes(const uint8_t* tile, uint8_t* out) {
#pragma GCC unroll 8
  for (int q = 0; q < QUADS; ++q)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h)
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + VECTOR_BYTES * q + VECTOR_BYTES / 2 * h),
                         decode_quad<BITS>(tile, q, h));
}

// WAYS sums a row are added to in turn: with few rows, one alone would wait for its own latency.
template <int ROWS, int WAYS>
TORCHCOINFER_AVX2 void multiply_floats(const float* decoded, const float* x, int64_t stride, int64_t columns,
                                       float* parts) {
  __m256 sums[ROWS][WAYS][2];
#pragma GCC unroll 6
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      sums[m][0][h] = _mm256_load_ps(parts + m * BLOCK_N + HALF * h);
#pragma GCC unroll 4
      for (int i = 1; i < WAYS; ++i) sums[m][i][h] = _mm256_setzero_ps();
    }
  for (int64_t k = 0; k < columns; k += WAYS) {
#pragma GCC unroll 4
    for (int i = 0; i < WAYS; ++i) {
      const __m256 left = _mm256_load_ps(decoded + (k + i) * BLOCK_N);
      const __m256 right = _mm256_load_ps(decoded + (k + i) * BLOCK_N + HALF);
#pragma GCC unroll 6
      for (int m = 0; m < ROWS; ++m) {
        const __m256 lane = _mm256_set1_ps(x[m * stride + k + i]);
        sums[m][i][0] = _mm256_fmadd_ps(left, lane, sums[m][i][0]);
        sums[m][i][1] = _mm256_fmadd_ps(right, lane, sums[m][i][1]);
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256 sum = sums[m][0][h];
#pragma GCC unroll 4
      for (int i = 1; i < WAYS; ++i) sum = _mm256_add_ps(sum, sums[m][i][h]);
      _mm256_store_ps(parts + m * BLOCK_N + HALF * h, sum);
    }
}

// u8 codes times s8 activations. vpmaddubsw saturates at 16 bits: 2 * 63 * 127 fits, 8-bit codes go as |code - 128|
// with the sign moved to x: 2 * 128 * 127 fits too, and the zero point is counted from 128.
template <int ROWS, bool WIDE>
TORCHCOINFER_AVX2 void multiply_codes(const uint8_t* decoded, const int8_t* x, int64_t stride, int64_t columns,
                                      int32_t* parts) {
  __m256i sums[ROWS][2];
  const __m256i ones = _mm256_set1_epi16(1), middle = _mm256_set1_epi8(static_cast<char>(0x80));
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h)
      sums[m][h] = _mm256_load_si256(reinterpret_cast<const __m256i*>(parts + m * BLOCK_N + HALF * h));
  for (int64_t k = 0; k < columns; k += 4) {
    __m256i codes[2] = {load(decoded + k * BLOCK_N), load(decoded + k * BLOCK_N + VECTOR_BYTES / 2)};
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) {
      int32_t four;
      std::memcpy(&four, x + m * stride + k, sizeof four);
      const __m256i lane = _mm256_set1_epi32(four);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        __m256i left = codes[h], right = lane;
        if (WIDE) {
          const __m256i centered = _mm256_xor_si256(codes[h], middle);
          left = _mm256_abs_epi8(centered);
          right = _mm256_sign_epi8(lane, centered);
        }
        sums[m][h] = _mm256_add_epi32(sums[m][h], _mm256_madd_epi16(_mm256_maddubs_epi16(left, right), ones));
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h)
      _mm256_store_si256(reinterpret_cast<__m256i*>(parts + m * BLOCK_N + HALF * h), sums[m][h]);
}

using MultiplyFloats = void (*)(const float*, const float*, int64_t, int64_t, float*);
constexpr MultiplyFloats MULTIPLY_FLOATS[FLOAT_ROWS + 1] = {
    nullptr,
    multiply_floats<1, 1>,
    multiply_floats<2, 1>,
    multiply_floats<3, 1>,
    multiply_floats<4, 1>,
    multiply_floats<5, 1>,
    multiply_floats<6, 1>,
};
constexpr MultiplyFloats MULTIPLY_FEW_FLOATS[GEMV_ROWS + 1] = {
    nullptr, multiply_floats<1, 4>, multiply_floats<2, 2>, multiply_floats<3, 2>, multiply_floats<4, 1>,
};

using MultiplyCodes = void (*)(const uint8_t*, const int8_t*, int64_t, int64_t, int32_t*);
template <bool WIDE>
constexpr MultiplyCodes MULTIPLY_CODES[CODE_ROWS + 1] = {
    nullptr, multiply_codes<1, WIDE>, multiply_codes<2, WIDE>, multiply_codes<3, WIDE>, multiply_codes<4, WIDE>,
};

TORCHCOINFER_AVX2 void add_float_segment(const QuantMatrix& w, const FloatRows& x, const Segments& segments, int64_t s,
                                         int64_t block, const float* parts, float* sums) {
  const GroupValues group = load_group(w, block * segments.groups() + segments.group(s));
  const __m256i center = _mm256_set1_epi32(implicit_zero(w.bits));
  for (int h = 0; h < 2; ++h) {
    const __m256 offset = _mm256_cvtepi32_ps(_mm256_sub_epi32(group.zero[h], center));
    for (int64_t m = 0; m < x.rows; ++m) {
      const int64_t place = m * BLOCK_N + HALF * h;
      __m256 part = _mm256_load_ps(parts + place);
      if (w.zeros) part = _mm256_fnmadd_ps(offset, _mm256_set1_ps(x.sums[m * segments.count + s]), part);
      _mm256_store_ps(sums + place, _mm256_fmadd_ps(group.scale[h], part, _mm256_load_ps(sums + place)));
    }
  }
}

TORCHCOINFER_AVX2 void add_code_segment(const QuantMatrix& w, const CodeRows& x, const Segments& segments, int64_t s,
                                        int64_t block, const int32_t* parts, float* sums) {
  const GroupValues group = load_group(w, block * segments.groups() + segments.group(s));
  const __m256i center = _mm256_set1_epi32(w.bits == 8 ? 128 : 0);
  for (int h = 0; h < 2; ++h) {
    const __m256i zero = _mm256_sub_epi32(group.zero[h], center);
    for (int64_t m = 0; m < x.rows; ++m) {
      const int64_t place = m * BLOCK_N + HALF * h;
      const __m256i part = _mm256_load_si256(reinterpret_cast<const __m256i*>(parts + place));
      const __m256i shift = _mm256_mullo_epi32(zero, _mm256_set1_epi32(x.sums[m * segments.count + s]));
      const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(part, shift));
      _mm256_store_ps(sums + place, _mm256_fmadd_ps(group.scale[h], exact, _mm256_load_ps(sums + place)));
    }
  }
}

template <int BITS>
TORCHCOINFER_AVX2 void float_block(const QuantMatrix& w, const FloatRows& x, const MultiplyFloats* multiply,
                                   int64_t block, float* decoded, float* parts, float* sums) {
  const Segments segments(w.K, w.group_size);
  std::memset(sums, 0, x.rows * BLOCK_N * sizeof(float));
  for (int64_t s = 0; s < segments.count; ++s) {
    std::memset(parts, 0, x.rows * BLOCK_N * sizeof(float));
    for (int64_t t = segments.begin(s); t < segments.end(s); t += CHUNK_TILES) {
      const int64_t left = segments.end(s) - t, count = left < CHUNK_TILES ? left : CHUNK_TILES;
      for (int64_t i = 0; i < count; ++i)
        decode_floats<BITS>(w.packed + (block * segments.tiles + t + i) * tile_bytes(BITS),
                            decoded + i * TILE_K * BLOCK_N);
      for (int64_t m = 0; m < x.rows; m += FLOAT_ROWS) {
        const int64_t rows = x.rows - m < FLOAT_ROWS ? x.rows - m : FLOAT_ROWS;
        multiply[rows](decoded, x.values + m * x.stride + t * TILE_K, x.stride, count * TILE_K,
                       parts + m * BLOCK_N);
      }
    }
    add_float_segment(w, x, segments, s, block, parts, sums);
  }
}

template <int BITS>
TORCHCOINFER_AVX2 void code_block(const QuantMatrix& w, const CodeRows& x, int64_t block, uint8_t* decoded,
                                  int32_t* parts, float* sums) {
  const Segments segments(w.K, w.group_size);
  std::memset(sums, 0, x.rows * BLOCK_N * sizeof(float));
  for (int64_t s = 0; s < segments.count; ++s) {
    std::memset(parts, 0, x.rows * BLOCK_N * sizeof(int32_t));
    for (int64_t t = segments.begin(s); t < segments.end(s); t += CHUNK_TILES) {
      const int64_t left = segments.end(s) - t, count = left < CHUNK_TILES ? left : CHUNK_TILES;
      for (int64_t i = 0; i < count; ++i)
        decode_bytes<BITS>(w.packed + (block * segments.tiles + t + i) * tile_bytes(BITS),
                           decoded + i * TILE_K * BLOCK_N);
      for (int64_t m = 0; m < x.rows; m += CODE_ROWS) {
        const int64_t rows = x.rows - m < CODE_ROWS ? x.rows - m : CODE_ROWS;
        MULTIPLY_CODES<BITS == 8>[rows](decoded, x.values + m * x.stride + t * TILE_K, x.stride, count * TILE_K,
                                        parts + m * BLOCK_N);
      }
    }
    add_code_segment(w, x, segments, s, block, parts, sums);
  }
}

using FloatBlock = void (*)(const QuantMatrix&, const FloatRows&, const MultiplyFloats*, int64_t, float*, float*,
                            float*);
using CodeBlock = void (*)(const QuantMatrix&, const CodeRows&, int64_t, uint8_t*, int32_t*, float*);
constexpr FloatBlock FLOAT_BLOCK[9] = {nullptr,        nullptr,        float_block<2>, float_block<3>, float_block<4>,
                                       float_block<5>, float_block<6>, nullptr,        float_block<8>};
constexpr CodeBlock CODE_BLOCK[9] = {nullptr,       nullptr,       code_block<2>, code_block<3>, code_block<4>,
                                     code_block<5>, code_block<6>, nullptr,       code_block<8>};

}  // namespace
}  // namespace torchcoinfer::avx2

namespace torchcoinfer {

TORCHCOINFER_LINEAR_KERNEL(linear_float_avx2, FloatRows) {
  const avx2::MultiplyFloats* multiply = few ? avx2::MULTIPLY_FEW_FLOATS : avx2::MULTIPLY_FLOATS;
  const Buffer<float> decoded(avx2::CHUNK_TILES * TILE_K * BLOCK_N);
  const Buffer<float> parts(x.rows * BLOCK_N), sums(x.rows * BLOCK_N);
  for (int64_t block = begin; block < end; ++block) {
    avx2::FLOAT_BLOCK[w.bits](w, x, multiply, block, decoded.get(), parts.get(), sums.get());
    for (int64_t m = 0; m < x.rows; ++m) store_row(sums.get() + m * BLOCK_N, out, m, block);
  }
}

TORCHCOINFER_LINEAR_KERNEL(linear_codes_avx2, CodeRows) {
  (void)few;
  const Buffer<uint8_t> decoded(avx2::CHUNK_TILES * TILE_K * BLOCK_N);
  const Buffer<int32_t> parts(x.rows * BLOCK_N);
  const Buffer<float> sums(x.rows * BLOCK_N);
  for (int64_t block = begin; block < end; ++block) {
    avx2::CODE_BLOCK[w.bits](w, x, block, decoded.get(), parts.get(), sums.get());
    for (int64_t m = 0; m < x.rows; ++m) {
      for (int n = 0; n < BLOCK_N; ++n) sums.get()[m * BLOCK_N + n] *= x.scales[m];
      store_row(sums.get() + m * BLOCK_N, out, m, block);
    }
  }
}

}  // namespace torchcoinfer

#endif
