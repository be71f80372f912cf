// NEON without dot products (Cortex-A53, A72): one n-block at a time. Up to four rows of x take decoded weights in
// registers, more take them from L1, four (float) or two (codes) rows at a time.

#include "cpu/linear.h"

#include "cpu/isa.h"

#if TORCHCOINFER_ARM

#include <algorithm>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/decode_neon.h"

namespace torchcoinfer::neon {
namespace {

constexpr int64_t CHUNK_TILES = 4;  // tiles decoded at once
constexpr int64_t TILE_CODES = TILE_K * BLOCK_N;
constexpr int FLOAT_ROWS = 4;       // rows of a register tile: 16 sums
constexpr int CODE_ROWS = 2;        // 16 sums too

// The centered bytes code - 2^(b-1) of a quad's part.
template <int BITS>
TORCHCOINFER_NEON_INLINE uint8x16_t centered_part(const uint8_t* tile, int q, int p) {
  return vsubq_u8(decode_part<BITS>(tile, q, p), vdupq_n_u8(implicit_zero(BITS)));
}

// parts [ROWS][16] += tiles times x, decoded in registers. WAYS sums a row are added to in turn: with few rows, one
// alone would wait for its own latency.
template <int BITS, int ROWS, int WAYS>
void add_few(const uint8_t* tile, int64_t tiles, const float* x, int64_t stride, float* parts) {
  const ByteFloats floats;
  float32x4_t sums[ROWS][PARTS][WAYS];
  for (int m = 0; m < ROWS; ++m)
    for (int p = 0; p < PARTS; ++p)
      for (int i = 0; i < WAYS; ++i) sums[m][p][i] = i ? vdupq_n_f32(0) : vld1q_f32(parts + m * BLOCK_N + 4 * p);
  for (int64_t t = 0; t < tiles; ++t, tile += tile_bytes(BITS), x += TILE_K)
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; ++q) {
      float32x4_t four[ROWS];
#pragma GCC unroll 4
      for (int m = 0; m < ROWS; ++m) four[m] = vld1q_f32(x + m * stride + 4 * q);
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) {
        const uint8x16_t bytes = centered_part<BITS>(tile, q, p);
        const float32x4_t w[4] = {floats.of_byte(bytes, 0), floats.of_byte(bytes, 1), floats.of_byte(bytes, 2),
                                  floats.of_byte(bytes, 3)};
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; ++m) {
          sums[m][p][0 % WAYS] = vfmaq_laneq_f32(sums[m][p][0 % WAYS], w[0], four[m], 0);
          sums[m][p][1 % WAYS] = vfmaq_laneq_f32(sums[m][p][1 % WAYS], w[1], four[m], 1);
          sums[m][p][2 % WAYS] = vfmaq_laneq_f32(sums[m][p][2 % WAYS], w[2], four[m], 2);
          sums[m][p][3 % WAYS] = vfmaq_laneq_f32(sums[m][p][3 % WAYS], w[3], four[m], 3);
        }
      }
    }
  for (int m = 0; m < ROWS; ++m)
    for (int p = 0; p < PARTS; ++p) {
      for (int i = 1; i < WAYS; ++i) sums[m][p][0] = vaddq_f32(sums[m][p][0], sums[m][p][i]);
      vst1q_f32(parts + m * BLOCK_N + 4 * p, sums[m][p][0]);
    }
}

// Floats code - 2^(b-1), k-major: out[k][16].
template <int BITS>
void decode_floats(const uint8_t* tile, int64_t tiles, float* out) {
  const ByteFloats floats;
  for (int64_t t = 0; t < tiles; ++t, tile += tile_bytes(BITS), out += TILE_CODES)
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; ++q)
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) {
        const uint8x16_t bytes = centered_part<BITS>(tile, q, p);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) vst1q_f32(out + (4 * q + i) * BLOCK_N + 4 * p, floats.of_byte(bytes, i));
      }
}

template <int ROWS>
void multiply_floats(const float* decoded, const float* x, int64_t stride, int64_t columns, float* parts) {
  float32x4_t sums[ROWS][PARTS];
  for (int m = 0; m < ROWS; ++m)
    for (int p = 0; p < PARTS; ++p) sums[m][p] = vld1q_f32(parts + m * BLOCK_N + 4 * p);
  for (int64_t k = 0; k < columns; ++k, decoded += BLOCK_N) {
    const float32x4_t w[PARTS] = {vld1q_f32(decoded), vld1q_f32(decoded + 4), vld1q_f32(decoded + 8),
                                  vld1q_f32(decoded + 12)};
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) {
      const float32x4_t value = vdupq_n_f32(x[m * stride + k]);
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) sums[m][p] = vfmaq_f32(sums[m][p], w[p], value);
    }
  }
  for (int m = 0; m < ROWS; ++m)
    for (int p = 0; p < PARTS; ++p) vst1q_f32(parts + m * BLOCK_N + 4 * p, sums[m][p]);
}

template <int BITS>
void decode_bytes(const uint8_t* tile, int64_t tiles, int8_t* out) {
  for (int64_t t = 0; t < tiles; ++t, tile += tile_bytes(BITS), out += TILE_CODES)
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; ++q)
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) vst1q_s8(out + q * VECTOR_BYTES + p * PART_BYTES, decode_signed<BITS>(tile, q, p));
}

// Two quads at a time: two products of at most 128 * 127 fit 16 bits.
template <int ROWS>
void multiply_codes(const int8_t* decoded, const int8_t* x, int64_t stride, int64_t columns, int32_t* parts) {
  int32x4_t sums[ROWS][PARTS][2];  // lanes: two partial sums of n = 4p and 4p + 1; of n = 4p + 2 and 4p + 3
  for (int m = 0; m < ROWS; ++m)
    for (int p = 0; p < PARTS; ++p) sums[m][p][0] = sums[m][p][1] = vdupq_n_s32(0);
  for (int64_t k = 0; k < columns; k += 8, decoded += 2 * VECTOR_BYTES)
#pragma GCC unroll 2
    for (int m = 0; m < ROWS; ++m) {
      const int8x8_t eight = vld1_s8(x + m * stride + k);
      const int8x8_t first = vreinterpret_s8_s32(vdup_lane_s32(vreinterpret_s32_s8(eight), 0));
      const int8x8_t second = vreinterpret_s8_s32(vdup_lane_s32(vreinterpret_s32_s8(eight), 1));
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) {
        const int8x16_t w = vld1q_s8(decoded + p * PART_BYTES), next = vld1q_s8(decoded + VECTOR_BYTES + p * PART_BYTES);
        const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(w), first), vget_low_s8(next), second);
        const int16x8_t high = vmlal_s8(vmull_s8(vget_high_s8(w), first), vget_high_s8(next), second);
        sums[m][p][0] = vpadalq_s16(sums[m][p][0], low);
        sums[m][p][1] = vpadalq_s16(sums[m][p][1], high);
      }
    }
  for (int m = 0; m < ROWS; ++m)
    for (int p = 0; p < PARTS; ++p) {
      int32_t* part = parts + m * BLOCK_N + 4 * p;
      vst1q_s32(part, vaddq_s32(vld1q_s32(part), vpaddq_s32(sums[m][p][0], sums[m][p][1])));
    }
}

using AddFew = void (*)(const uint8_t*, int64_t, const float*, int64_t, float*);
template <int BITS>
constexpr AddFew ADD_FEW[GEMV_ROWS + 1] = {nullptr, add_few<BITS, 1, 4>, add_few<BITS, 2, 2>,
                                           add_few<BITS, 3, 1>, add_few<BITS, 4, 1>};
using MultiplyFloats = void (*)(const float*, const float*, int64_t, int64_t, float*);
constexpr MultiplyFloats MULTIPLY_FLOATS[FLOAT_ROWS + 1] = {nullptr, multiply_floats<1>, multiply_floats<2>,
                                                            multiply_floats<3>, multiply_floats<4>};
using MultiplyCodes = void (*)(const int8_t*, const int8_t*, int64_t, int64_t, int32_t*);
constexpr MultiplyCodes MULTIPLY_CODES[CODE_ROWS + 1] = {nullptr, multiply_codes<1>, multiply_codes<2>};

void add_float_segment(const QuantMatrix& w, const FloatRows& x, const Segments& segments, int64_t s, int64_t block,
                       const float* parts, float* sums) {
  const int64_t place = block * segments.groups() + segments.group(s);
  for (int p = 0; p < PARTS; ++p) {
    const float32x4_t scale = load_scales(w, place, p);
    const float32x4_t offset = vcvtq_f32_s32(load_zeros(w, place, p, implicit_zero(w.bits)));
    for (int64_t m = 0; m < x.rows; ++m) {
      const int64_t at = m * BLOCK_N + 4 * p;
      float32x4_t part = vld1q_f32(parts + at);
      if (w.zeros) part = vfmsq_n_f32(part, offset, x.sums[m * segments.count + s]);
      vst1q_f32(sums + at, vfmaq_f32(vld1q_f32(sums + at), scale, part));
    }
  }
}

void add_code_segment(const QuantMatrix& w, const CodeRows& x, const Segments& segments, int64_t s, int64_t block,
                      const int32_t* parts, float* sums) {
  const int64_t place = block * segments.groups() + segments.group(s);
  for (int p = 0; p < PARTS; ++p) {
    const float32x4_t scale = load_scales(w, place, p);
    const int32x4_t zero = load_zeros(w, place, p, byte_center(w.bits));
    for (int64_t m = 0; m < x.rows; ++m) {
      const int64_t at = m * BLOCK_N + 4 * p;
      const int32x4_t exact = vmlsq_n_s32(vld1q_s32(parts + at), zero, x.sums[m * segments.count + s]);
      vst1q_f32(sums + at, vfmaq_f32(vld1q_f32(sums + at), scale, vcvtq_f32_s32(exact)));
    }
  }
}

// What one call decodes into and sums up in.
template <typename Code, typename Sum>
struct Workspace {
  const Buffer<Code> decoded;
  const Buffer<Sum> parts;
  const Buffer<float> sums;
  explicit Workspace(int64_t rows) : decoded(CHUNK_TILES * TILE_CODES), parts(rows * BLOCK_N), sums(rows * BLOCK_N) {}
};

template <int BITS>
void float_block(const QuantMatrix& w, const FloatRows& x, bool few, int64_t block,
                 const Workspace<float, float>& work) {
  const Segments segments(w.K, w.group_size);
  const uint8_t* tiles = w.packed + block * segments.tiles * tile_bytes(BITS);
  float* parts = work.parts.get();
  std::fill_n(work.sums.get(), x.rows * BLOCK_N, 0.f);
  for (int64_t s = 0; s < segments.count; ++s) {
    std::fill_n(parts, x.rows * BLOCK_N, 0.f);
    for (int64_t t = segments.begin(s); t < segments.end(s); t += CHUNK_TILES) {
      const int64_t count = std::min(CHUNK_TILES, segments.end(s) - t);
      const uint8_t* tile = tiles + t * tile_bytes(BITS);
      const float* columns = x.values + t * TILE_K;
      if (few) {
        ADD_FEW<BITS>[x.rows](tile, count, columns, x.stride, parts);
        continue;
      }
      decode_floats<BITS>(tile, count, work.decoded.get());
      for (int64_t m = 0; m < x.rows; m += FLOAT_ROWS)
        MULTIPLY_FLOATS[std::min<int64_t>(FLOAT_ROWS, x.rows - m)](work.decoded.get(), columns + m * x.stride, x.stride,
                                                                  count * TILE_K, parts + m * BLOCK_N);
    }
    add_float_segment(w, x, segments, s, block, parts, work.sums.get());
  }
}

template <int BITS>
void code_block(const QuantMatrix& w, const CodeRows& x, int64_t block, const Workspace<int8_t, int32_t>& work) {
  const Segments segments(w.K, w.group_size);
  const uint8_t* tiles = w.packed + block * segments.tiles * tile_bytes(BITS);
  int32_t* parts = work.parts.get();
  std::fill_n(work.sums.get(), x.rows * BLOCK_N, 0.f);
  for (int64_t s = 0; s < segments.count; ++s) {
    std::fill_n(parts, x.rows * BLOCK_N, 0);
    for (int64_t t = segments.begin(s); t < segments.end(s); t += CHUNK_TILES) {
      const int64_t count = std::min(CHUNK_TILES, segments.end(s) - t);
      decode_bytes<BITS>(tiles + t * tile_bytes(BITS), count, work.decoded.get());
      for (int64_t m = 0; m < x.rows; m += CODE_ROWS)
        MULTIPLY_CODES[std::min<int64_t>(CODE_ROWS, x.rows - m)](work.decoded.get(),
                                                                x.values + m * x.stride + t * TILE_K, x.stride,
                                                                count * TILE_K, parts + m * BLOCK_N);
    }
    add_code_segment(w, x, segments, s, block, parts, work.sums.get());
  }
}

using FloatBlock = void (*)(const QuantMatrix&, const FloatRows&, bool, int64_t, const Workspace<float, float>&);
using CodeBlock = void (*)(const QuantMatrix&, const CodeRows&, int64_t, const Workspace<int8_t, int32_t>&);
constexpr FloatBlock FLOAT_BLOCK[9] = {nullptr,        nullptr,        float_block<2>, float_block<3>, float_block<4>,
                                       float_block<5>, float_block<6>, nullptr,        float_block<8>};
constexpr CodeBlock CODE_BLOCK[9] = {nullptr,       nullptr,       code_block<2>, code_block<3>, code_block<4>,
                                     code_block<5>, code_block<6>, nullptr,       code_block<8>};

}  // namespace
}  // namespace torchcoinfer::neon

namespace torchcoinfer {

TORCHCOINFER_LINEAR_KERNEL(linear_float_neon, FloatRows) {
  const neon::Workspace<float, float> work(x.rows);
  for (int64_t block = begin; block < end; ++block) {
    neon::FLOAT_BLOCK[w.bits](w, x, few, block, work);
    for (int64_t m = 0; m < x.rows; ++m) store_row(work.sums.get() + m * BLOCK_N, out, m, block);
  }
}

TORCHCOINFER_LINEAR_KERNEL(linear_codes_neon, CodeRows) {
  (void)few;
  const neon::Workspace<int8_t, int32_t> work(x.rows);
  for (int64_t block = begin; block < end; ++block) {
    neon::CODE_BLOCK[w.bits](w, x, block, work);
    for (int64_t m = 0; m < x.rows; ++m) {
      for (int n = 0; n < BLOCK_N; ++n) work.sums.get()[m * BLOCK_N + n] *= x.scales[m];
      store_row(work.sums.get() + m * BLOCK_N, out, m, block);
    }
  }
}

}  // namespace torchcoinfer

#endif
