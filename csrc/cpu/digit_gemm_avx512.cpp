// Many row tiles of x: a chunk of K of two n-blocks is decoded into L1 with the first tile, then multiplied with the
// others. AVX-512.

#include "cpu/isa.h"

#if TORCHCOINFER_X86

#include <algorithm>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/finish_avx512.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int64_t BLOCKS = 2;
constexpr int64_t COLUMNS = BLOCKS * BLOCK_N;
// K-tiles of a chunk, whole segments: 8 KB of codes decoded, 16 KB where they are read as they lie.
constexpr int64_t chunk_tiles(int bits) {
  return (bits == 8 ? 2 : 1) * (SEGMENT_K / TILE_K);
}
constexpr int64_t TILE_CODES = TILE_K * BLOCK_N;

// Two neighboring blocks; where the second is missing, the first stands in for it.
struct Pair {
  int64_t block[BLOCKS];
};

// A chunk of a pair, as multiply takes it.
struct Chunk {
  int64_t segments;
  int64_t lanes;                 // of a segment
  int64_t last_lanes;            // of the last one, which may be shorter
  int64_t place[BLOCKS];         // of the first segment's scales and zero points
  int64_t place_step;
  const uint8_t* codes[BLOCKS];  // what multiply reads: packed tiles, or codes [lanes][16 n][4 k]
  uint8_t* decoded[BLOCKS];      // where it puts the codes of packed tiles
  const uint8_t* ahead[BLOCKS];  // packed tiles that are fetched meanwhile, `ahead_step` bytes with each lane
  int64_t ahead_step;
};

TORCHCOINFER_AVX512_INLINE void fetch(const uint8_t* data) {
  _mm_prefetch(reinterpret_cast<const char*>(data), _MM_HINT_T0);
}

// Lines of y that are soon stored: its rows lie far apart, and a store that waits for its line holds up all others.
void fetch_rows(const Output& out, const Pair& pair, int64_t begin, int64_t end) {
  const int64_t bytes = dtype_bytes(out.dtype);
  for (int64_t b = 0; b < BLOCKS; ++b) {
    const char* y = static_cast<const char*>(out.y) + pair.block[b] * BLOCK_N * out.column_stride * bytes;
    // an instruction: the compiler drops calls of functions that only prefetch
    for (int64_t m = begin; m < end; ++m) asm volatile("prefetchw %0" ::"m"(y[m * out.row_stride * bytes]));
  }
}

template <int ROWS>
TORCHCOINFER_AVX512_INLINE void add_lane(__m512i left, __m512i right, const int32_t* x, __m512i (*parts)[BLOCKS]) {
#pragma GCC unroll 12
  for (int m = 0; m < ROWS; ++m) {
    const __m512i lane = _mm512_set1_epi32(x[m]);
    add_products(left, lane, parts[m][0]);
    add_products(right, lane, parts[m][1]);
  }
}

// parts += codes * x of lanes [begin, end) of a chunk. Packed tiles are decoded on the way, which costs little beside
// the products, where a pass of its own waits for its loads and stores.
template <int BITS, int ROWS>
TORCHCOINFER_AVX512_INLINE void add_lanes(const Chunk& chunk, int64_t begin, int64_t end, const int32_t* x,
                                          __m512i (*parts)[BLOCKS]) {
  const int64_t offset = BITS == 8 ? begin * VECTOR_BYTES : begin / QUADS * tile_bytes(BITS), step = chunk.ahead_step;
  const uint8_t *left = chunk.codes[0] + offset, *right = chunk.codes[1] + offset;
  const uint8_t *ahead_left = chunk.ahead[0] + begin * step, *ahead_right = chunk.ahead[1] + begin * step;
  if constexpr (BITS == 8) {
    for (int64_t i = begin; i < end; ++i, x += ROWS, left += VECTOR_BYTES, right += VECTOR_BYTES) {
      fetch(ahead_left), fetch(ahead_right);
      ahead_left += step, ahead_right += step;
      add_lane<ROWS>(load_vector(left), load_vector(right), x, parts);
    }
  } else {
    uint8_t *out_left = chunk.decoded[0] + begin * VECTOR_BYTES, *out_right = chunk.decoded[1] + begin * VECTOR_BYTES;
    for (int64_t i = begin; i < end; i += QUADS, left += tile_bytes(BITS), right += tile_bytes(BITS)) {
      fetch(ahead_left), fetch(ahead_right);
      ahead_left += QUADS * step, ahead_right += QUADS * step;
#pragma GCC unroll 8
      for (int q = 0; q < QUADS; ++q, x += ROWS, out_left += VECTOR_BYTES, out_right += VECTOR_BYTES) {
        const __m512i codes[BLOCKS] = {decode_quad<BITS>(left, q), decode_quad<BITS>(right, q)};
        _mm512_store_si512(out_left, codes[0]);
        _mm512_store_si512(out_right, codes[1]);
        add_lane<ROWS>(codes[0], codes[1], x, parts);
      }
    }
  }
}

// Whether a digit has a start value; the second of several has the first's, too.
template <int DIGITS>
constexpr bool is_started(int digit) {
  return DIGITS == 1 || digit > 0;
}

// One row tile times the pair's 32 columns of a chunk. BITS: of the codes that are read, 8 where they are decoded.
// x: [lanes][ROWS]; starts: [segments][ROWS]; scales: [segments][HEIGHT]; sums: [HEIGHT][32]. They come in registers:
// in a struct on the stack they made each call wait.
template <int BITS, int DIGITS, int HEIGHT>
TORCHCOINFER_AVX512 void multiply(const QuantMatrix& w, const Chunk& chunk, const int32_t* x, const int32_t* starts,
                                  const float* scales, float* sums) {
  constexpr int ROWS = HEIGHT * DIGITS;
  for (int64_t s = 0; s < chunk.segments; ++s, starts += ROWS, scales += HEIGHT) {
    const int64_t place[BLOCKS] = {chunk.place[0] + s * chunk.place_step, chunk.place[1] + s * chunk.place_step};
    const int64_t begin = s * chunk.lanes, end = begin + (s + 1 < chunk.segments ? chunk.lanes : chunk.last_lanes);
    __m512i parts[ROWS][BLOCKS];
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
      for (int b = 0; b < BLOCKS; ++b)
        parts[m][b] = w.zeros && is_started<DIGITS>(m % DIGITS) ? start(w, place[b], starts[m]) : _mm512_setzero_si512();
    add_lanes<BITS, ROWS>(chunk, begin, end, x + begin * ROWS, parts);
#pragma GCC unroll 2
    for (int b = 0; b < BLOCKS; ++b) {
      const __m512 scale = load_scales(w, place[b]);
#pragma GCC unroll 12
      for (int m = 0; m < HEIGHT; ++m) {
        __m512i digits[DIGITS];
#pragma GCC unroll 3
        for (int d = 0; d < DIGITS; ++d) {
          digits[d] = parts[m * DIGITS + d][b];
          // not from the start: sums that begin at 0 take no load, which the first products would wait for
          if (!w.zeros && is_started<DIGITS>(d))
            digits[d] = _mm512_add_epi32(digits[d], _mm512_set1_epi32(starts[m * DIGITS + d]));
        }
        add_segment<DIGITS>(digits, scale, DIGITS == 1 ? 1.f : scales[m], sums + m * COLUMNS + b * BLOCK_N);
      }
    }
    asm volatile("" ::: "memory");  // else the compiler keeps all sums beyond a segment, and spills them
  }
}

using Multiply = void (*)(const QuantMatrix&, const Chunk&, const int32_t*, const int32_t*, const float*, float*);

template <int BITS, int DIGITS, int HEIGHT = RowTiles::MOST / DIGITS>
Multiply multiply_of_height(int64_t height) {
  if (height == HEIGHT) return multiply<BITS, DIGITS, HEIGHT>;
  if constexpr (HEIGHT > 1) return multiply_of_height<BITS, DIGITS, HEIGHT - 1>(height);
  return nullptr;
}

template <int BITS>
Multiply multiply_of(int digits, int64_t height) {
  if (digits == 1) return multiply_of_height<BITS, 1>(height);
  return digits == 2 ? multiply_of_height<BITS, 2>(height) : multiply_of_height<BITS, 3>(height);
}

// Finished rows [begin, end) of a pair. sums: of row `begin`.
template <int DIGITS>
TORCHCOINFER_AVX512 void store_rows(const float* sums, const DigitRows& x, const Pair& pair, const Output& out,
                                    int64_t begin, int64_t end) {
  const int64_t count = pair.block[1] > pair.block[0] ? BLOCKS : 1;
  for (int64_t m = begin; m < end; ++m, sums += COLUMNS)
    for (int64_t b = 0; b < count; ++b) store_scaled<DIGITS>(sums + b * BLOCK_N, x, m, out, m, pair.block[b]);
}

// A range of n-blocks times all rows. Workspace: codes of a chunk, and sums [rows][32].
template <int BITS>
class Gemm {
 public:
  Gemm(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t end_block)
      : w_(w), x_(x), out_(out), end_block_(end_block), segments_(w.K, w.group_size), tiles_(x.rows, x.digits),
        low_(x.rows / tiles_.count), first_(multiply_of<BITS>(x.digits, low_)),
        others_{multiply_of<8>(x.digits, low_),
                multiply_of<8>(x.digits, std::min(low_ + 1, RowTiles::MOST / x.digits))},
        codes_(BITS < 8 ? BLOCKS * chunk_tiles(BITS) * TILE_CODES : 0), sums_(x.rows * COLUMNS) {}

  void pair(const Pair& pair) const {
    const int64_t each = ceil_div(chunk_tiles(BITS), segments_.tiles_each);
    for (int64_t s = 0; s < segments_.count; s += each) chunk(pair, s, std::min(s + each, segments_.count));
  }

 private:
  const uint8_t* packed(int64_t block, int64_t tile) const {
    return w_.packed + (block * segments_.tiles + tile) * tile_bytes(BITS);
  }
  // Segments [s0, s1) of a pair. What follows in memory is fetched: the next chunk, or the next pair's first.
  Chunk chunk_of(const Pair& pair, int64_t s0, int64_t s1) const {
    const int64_t t0 = segments_.begin(s0), t1 = segments_.end(s1 - 1), group = segments_.group(s0);
    const int64_t lanes = (t1 - t0) * QUADS;
    Chunk chunk{};
    chunk.segments = s1 - s0;
    chunk.lanes = segments_.tiles_each * QUADS;
    chunk.last_lanes = (t1 - segments_.begin(s1 - 1)) * QUADS;
    chunk.place_step = segments_.one_group ? 0 : 1;
    chunk.ahead_step = ceil_div((t1 - t0) * tile_bytes(BITS), tiles_.count * lanes);
    for (int64_t b = 0; b < BLOCKS; ++b) {
      chunk.place[b] = pair.block[b] * segments_.groups() + group;
      chunk.codes[b] = packed(pair.block[b], t0);
      chunk.decoded[b] = codes_.get() + b * chunk_tiles(BITS) * TILE_CODES;
      const int64_t block = pair.block[b] + (t1 == segments_.tiles ? BLOCKS : 0);
      chunk.ahead[b] = packed(std::min(block, end_block_ - 1), t1 % segments_.tiles);
    }
    return chunk;
  }
  // A row tile after another, so that its sums stay in L1 over the chunk.
  void chunk(const Pair& pair, int64_t s0, int64_t s1) const {
    Chunk chunk = chunk_of(pair, s0, s1);
    const int64_t t0 = segments_.begin(s0), lanes = (segments_.end(s1 - 1) - t0) * QUADS;
    for (int64_t i = 0; i < tiles_.count; ++i) {
      const int64_t row = tiles_.begin(i), end = tiles_.begin(i + 1), height = end - row;
      float* sums = sums_.get() + row * COLUMNS;
      const bool last = s1 == segments_.count;
      if (s0 == 0) std::memset(sums, 0, height * COLUMNS * sizeof(float));
      if (last) fetch_rows(out_, pair, row, end);
      const Multiply multiply = i == 0 ? first_ : others_[height - low_];
      multiply(w_, chunk, x_.lanes + row * x_.row_lanes + t0 * QUADS * height * x_.digits,
               x_.starts + (row * segments_.count + s0 * height) * x_.digits,
               x_.scales + row * x_.scales_each() + s0 * height, sums);
      for (int64_t b = 0; b < BLOCKS; ++b) {
        chunk.ahead[b] += lanes * chunk.ahead_step;
        if (BITS < 8) chunk.codes[b] = chunk.decoded[b];
      }
      if (last) (x_.digits == 1 ? store_rows<1> : store_rows<2>)(sums, x_, pair, out_, row, end);
    }
  }

  const QuantMatrix& w_;
  const DigitRows& x_;
  const Output& out_;
  int64_t end_block_;
  Segments segments_;
  DigitTiles tiles_;
  int64_t low_;  // tiles have low_ and low_ + 1 rows, the first low_
  Multiply first_, others_[2];
  Buffer<uint8_t> codes_;
  Buffer<float> sums_;
};

template <int BITS>
void gemm_bits(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t begin, int64_t end) {
  const Gemm<BITS> gemm(w, x, out, end);
  for (int64_t block = begin; block < end; block += BLOCKS) gemm.pair({{block, std::min(block + 1, end - 1)}});
}

}  // namespace

void gemm_digits(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t begin, int64_t end) {
  if (w.bits == 2) gemm_bits<2>(w, x, out, begin, end);
  if (w.bits == 3) gemm_bits<3>(w, x, out, begin, end);
  if (w.bits == 4) gemm_bits<4>(w, x, out, begin, end);
  if (w.bits == 5) gemm_bits<5>(w, x, out, begin, end);
  if (w.bits == 6) gemm_bits<6>(w, x, out, begin, end);
  if (w.bits == 8) gemm_bits<8>(w, x, out, begin, end);
}

}  // namespace torchcoinfer::avx512

#endif
