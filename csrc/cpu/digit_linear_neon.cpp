// Digits of x (digits_neon.h) times codes: dot products (sdot) and matrix products (smmla), one n-block at a time.

#include "cpu/digits_neon.h"

#if TORCHCOINFER_ARM

#include "cpu/buffer.h"
#include "cpu/decode_neon.h"

namespace torchcoinfer::neon {
namespace {

constexpr int64_t SEGMENT_BYTES = SEGMENT_K * BLOCK_N;  // the longest segment, decoded
constexpr int PAIR_VECTORS = BLOCK_N / 2;               // of two n by eight k each

// Puts the sums of a segment's digits together and adds them, scaled, to sums [HEIGHT][16].
template <int DIGITS, int HEIGHT>
TORCHCOINFER_NEON_INLINE void add_segment(const QuantMatrix& w, int64_t place, const int32_t* starts,
                                          const float* x_scales, const int32x4_t (*parts)[PARTS], float* sums) {
#pragma GCC unroll 4
  for (int p = 0; p < PARTS; ++p) {
    const float32x4_t scale = load_scales(w, place, p);
    const int32x4_t zero = load_zeros(w, place, p, byte_center(w.bits));
#pragma GCC unroll 6
    for (int m = 0; m < HEIGHT; ++m) {
      float32x4_t whole = vcvtq_f32_s32(vmlaq_n_s32(parts[m * DIGITS][p], zero, starts[m * DIGITS]));
#pragma GCC unroll 3
      for (int d = 1; d < DIGITS; ++d) {
        const int32x4_t digit = vmlaq_n_s32(parts[m * DIGITS + d][p], zero, starts[m * DIGITS + d]);
        whole = vfmaq_n_f32(vcvtq_f32_s32(digit), whole, 256.f);
      }
      if (DIGITS > 1) whole = vmulq_n_f32(whole, x_scales[m]);
      float* sum = sums + m * BLOCK_N + 4 * p;
      vst1q_f32(sum, vfmaq_f32(vld1q_f32(sum), scale, whole));
    }
  }
}

void store_tile(float* sums, const DigitRows& x, int64_t row, int64_t height, const Output& out, int64_t block) {
  for (int64_t m = 0; m < height; ++m) {
    if (x.digits == 1)
      for (int n = 0; n < BLOCK_N; ++n) sums[m * BLOCK_N + n] *= x.tile_scales(row)[m];
    store_row(sums + m * BLOCK_N, out, row + m, block);
  }
}

TORCHCOINFER_NEON_INLINE int8x16_t four_k(const int8_t* lane) {
  return vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(lane)));
}

template <int BITS, int DIGITS, int HEIGHT>
TORCHCOINFER_DOTPROD void gemv_block(const QuantMatrix& w, const DigitRows& x, int64_t row, const Output& out,
                                     int64_t block) {
  constexpr int ROWS = DIGITS * HEIGHT;
  const Segments segments(w.K, w.group_size);
  const uint8_t* tile = w.packed + block * segments.tiles * tile_bytes(BITS);
  const int8_t* lanes = x.tile_lanes(row);
  float sums[HEIGHT * BLOCK_N] = {};
  for (int64_t s = 0; s < segments.count; ++s) {
    int32x4_t parts[ROWS][PARTS];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) parts[r][p] = vdupq_n_s32(0);
    for (int64_t t = segments.begin(s); t < segments.end(s); ++t, tile += tile_bytes(BITS))
#pragma GCC unroll 8
      for (int q = 0; q < QUADS; ++q, lanes += 4 * ROWS) {
        int8x16_t codes[PARTS];
#pragma GCC unroll 4
        for (int p = 0; p < PARTS; ++p) codes[p] = decode_signed<BITS>(tile, q, p);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
          const int8x16_t lane = four_k(lanes + 4 * r);
#pragma GCC unroll 4
          for (int p = 0; p < PARTS; ++p) parts[r][p] = vdotq_s32(parts[r][p], codes[p], lane);
        }
      }
    add_segment<DIGITS, HEIGHT>(w, block * segments.groups() + segments.group(s), x.tile_starts(row) + s * ROWS,
                                DIGITS == 1 ? nullptr : x.tile_scales(row) + s * HEIGHT, parts, sums);
  }
  store_tile(sums, x, row, HEIGHT, out, block);
}

// One segment of a block, decoded.
struct Segment {
  const int8_t* codes;  // dots: [quads][16 n][4 k]; pairs: [quads / 2][8][2 n][8 k]
  int64_t quads;
  int64_t place;  // of scales and zero points
};

// One tile of rows. x: the tile's lanes of the segment.
template <int DIGITS, int HEIGHT>
TORCHCOINFER_DOTPROD void multiply_dots(const QuantMatrix& w, const Segment& segment, const int8_t* x,
                                        const int32_t* starts, const float* x_scales, float* sums) {
  constexpr int ROWS = DIGITS * HEIGHT;
  int32x4_t parts[ROWS][PARTS];
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; ++p) parts[r][p] = vdupq_n_s32(0);
  const int8_t* codes = segment.codes;
  for (int64_t q = 0; q < segment.quads; ++q, codes += VECTOR_BYTES, x += 4 * ROWS) {
    const int8x16x4_t w4 = vld1q_s8_x4(codes);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) {
      const int8x16_t lane = four_k(x + 4 * r);
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) parts[r][p] = vdotq_s32(parts[r][p], w4.val[p], lane);
    }
  }
  add_segment<DIGITS, HEIGHT>(w, segment.place, starts, x_scales, parts, sums);
}

template <int DIGITS, int HEIGHT>
TORCHCOINFER_I8MM void multiply_pairs(const QuantMatrix& w, const Segment& segment, const int8_t* x,
                                      const int32_t* starts, const float* x_scales, float* sums) {
  constexpr int ROWS = DIGITS * HEIGHT, PAIRS = (ROWS + 1) / 2;
  int32x4_t products[PAIRS][PAIR_VECTORS];  // lanes: row 0 with two n, row 1 with them
#pragma GCC unroll 3
  for (int r = 0; r < PAIRS; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < PAIR_VECTORS; ++j) products[r][j] = vdupq_n_s32(0);
  const int8_t* codes = segment.codes;
  for (int64_t q = 0; q < segment.quads; q += 2, codes += 2 * VECTOR_BYTES, x += 16 * PAIRS) {
    int8x16_t rows[PAIRS];
#pragma GCC unroll 3
    for (int r = 0; r < PAIRS; ++r) rows[r] = vld1q_s8(x + 16 * r);
#pragma GCC unroll 8
    for (int j = 0; j < PAIR_VECTORS; ++j) {
      const int8x16_t two = vld1q_s8(codes + 16 * j);
#pragma GCC unroll 3
      for (int r = 0; r < PAIRS; ++r) products[r][j] = vmmlaq_s32(products[r][j], rows[r], two);
    }
  }
  int32x4_t parts[2 * PAIRS][PARTS];
#pragma GCC unroll 3
  for (int r = 0; r < PAIRS; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; ++p) {
      const int32x4_t left = products[r][2 * p], right = products[r][2 * p + 1];
      parts[2 * r][p] = vcombine_s32(vget_low_s32(left), vget_low_s32(right));
      parts[2 * r + 1][p] = vcombine_s32(vget_high_s32(left), vget_high_s32(right));
    }
  add_segment<DIGITS, HEIGHT>(w, segment.place, starts, x_scales, parts, sums);
}

template <int BITS, bool PAIRED>
void decode_segment(const uint8_t* tile, int64_t tiles, int8_t* out) {
  for (int64_t t = 0; t < tiles; ++t, tile += tile_bytes(BITS), out += TILE_K * BLOCK_N)
#pragma GCC unroll 4
    for (int q = 0; q < QUADS; q += 2)
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) {
        int8_t* place = out + q * VECTOR_BYTES;
        const int8x16_t first = decode_signed<BITS>(tile, q, p), second = decode_signed<BITS>(tile, q + 1, p);
        if (PAIRED) {
          const int32x4_t low = vreinterpretq_s32_s8(first), high = vreinterpretq_s32_s8(second);
          vst1q_s8(place + 2 * PART_BYTES * p, vreinterpretq_s8_s32(vzip1q_s32(low, high)));
          vst1q_s8(place + 2 * PART_BYTES * p + PART_BYTES, vreinterpretq_s8_s32(vzip2q_s32(low, high)));
        } else {
          vst1q_s8(place + PART_BYTES * p, first);
          vst1q_s8(place + VECTOR_BYTES + PART_BYTES * p, second);
        }
      }
}

using Multiply = void (*)(const QuantMatrix&, const Segment&, const int8_t*, const int32_t*, const float*, float*);

template <bool PAIRED, int DIGITS, int HEIGHT = MOST_DIGITS_TOGETHER / DIGITS>
Multiply multiply_of_height(int64_t height) {
  if (height == HEIGHT) return PAIRED ? multiply_pairs<DIGITS, HEIGHT> : multiply_dots<DIGITS, HEIGHT>;
  if constexpr (HEIGHT > 1) return multiply_of_height<PAIRED, DIGITS, HEIGHT - 1>(height);
  return nullptr;
}

template <bool PAIRED>
Multiply multiply_of(int digits, int64_t height) {
  if (digits == 1) return multiply_of_height<PAIRED, 1>(height);
  return digits == 2 ? multiply_of_height<PAIRED, 2>(height) : multiply_of_height<PAIRED, 3>(height);
}

template <int BITS, bool PAIRED>
void gemm_bits(const QuantMatrix& w, const DigitRows& x, int64_t first, int64_t last, const Output& out, int64_t begin,
               int64_t end) {
  const Segments segments(w.K, w.group_size);
  const int64_t first_row = x.tiles.begin(first), rows = x.tiles.begin(last) - first_row;
  const Buffer<int8_t> decoded(SEGMENT_BYTES);
  const Buffer<float> sums(rows * BLOCK_N);
  for (int64_t block = begin; block < end; ++block) {
    std::fill_n(sums.get(), rows * BLOCK_N, 0.f);
    for (int64_t s = 0; s < segments.count; ++s) {
      const int64_t t = segments.begin(s), count = segments.end(s) - t;
      decode_segment<BITS, PAIRED>(w.packed + (block * segments.tiles + t) * tile_bytes(BITS), count, decoded.get());
      const Segment segment{decoded.get(), count * QUADS, block * segments.groups() + segments.group(s)};
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t row = x.tiles.begin(tile), height = x.tiles.begin(tile + 1) - row, R = height * x.digits;
        const int64_t width = PAIRED ? ceil_div(R, 2) * 2 : R;
        multiply_of<PAIRED>(x.digits, height)(w, segment, x.tile_lanes(row) + t * TILE_K * width,
                                              x.tile_starts(row) + s * R,
                                              x.tile_scales(row) + (x.digits == 1 ? 0 : s * height),
                                              sums.get() + (row - first_row) * BLOCK_N);
      }
    }
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t row = x.tiles.begin(tile);
      store_tile(sums.get() + (row - first_row) * BLOCK_N, x, row, x.tiles.begin(tile + 1) - row, out, block);
    }
  }
}

template <int BITS, int DIGITS, int HEIGHT = MOST_DIGITS_TOGETHER / DIGITS>
void gemv_of_height(const QuantMatrix& w, const DigitRows& x, int64_t row, int64_t height, const Output& out,
                    int64_t block) {
  if (height == HEIGHT) return gemv_block<BITS, DIGITS, HEIGHT>(w, x, row, out, block);
  if constexpr (HEIGHT > 1) gemv_of_height<BITS, DIGITS, HEIGHT - 1>(w, x, row, height, out, block);
}

template <int BITS>
void gemv_bits(const QuantMatrix& w, const DigitRows& x, int64_t first, int64_t last, const Output& out, int64_t begin,
               int64_t end) {
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t row = x.tiles.begin(tile), height = x.tiles.begin(tile + 1) - row;
    for (int64_t block = begin; block < end; ++block) {
      if (x.digits == 1) gemv_of_height<BITS, 1>(w, x, row, height, out, block);
      if (x.digits == 2) gemv_of_height<BITS, 2>(w, x, row, height, out, block);
      if (x.digits == 3) gemv_of_height<BITS, 3>(w, x, row, height, out, block);
    }
  }
}

using Kernel = decltype(&gemv_digits);
constexpr Kernel GEMV[9] = {nullptr,      nullptr,      gemv_bits<2>, gemv_bits<3>, gemv_bits<4>,
                            gemv_bits<5>, gemv_bits<6>, nullptr,      gemv_bits<8>};
template <bool PAIRED>
constexpr Kernel GEMM[9] = {nullptr,
                            nullptr,
                            gemm_bits<2, PAIRED>,
                            gemm_bits<3, PAIRED>,
                            gemm_bits<4, PAIRED>,
                            gemm_bits<5, PAIRED>,
                            gemm_bits<6, PAIRED>,
                            nullptr,
                            gemm_bits<8, PAIRED>};

}  // namespace

TORCHCOINFER_DIGIT_KERNEL(gemv_digits) {
  GEMV[w.bits](w, x, first, last, out, begin, end);
}
TORCHCOINFER_DIGIT_KERNEL(gemm_dots) {
  GEMM<false>[w.bits](w, x, first, last, out, begin, end);
}
TORCHCOINFER_DIGIT_KERNEL(gemm_pairs) {
  GEMM<true>[w.bits](w, x, first, last, out, begin, end);
}

}  // namespace torchcoinfer::neon

#endif
