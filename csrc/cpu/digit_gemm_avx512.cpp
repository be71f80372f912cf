// Many row tiles of x: a chunk of K of two n-blocks is decoded into L1, then multiplied with every tile. AVX-512.

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
constexpr int64_t LEAST_CHUNK_TILES = 4;  // tiles decoded at once: whole segments
constexpr int64_t MOST_CHUNK_TILES = SEGMENT_K / TILE_K;
constexpr int64_t CHUNKS_AHEAD = 2;       // packed chunks between those decoded and those fetched
constexpr int64_t TILE_CODES = TILE_K * BLOCK_N;

// Two neighboring blocks; where the second is missing, the first stands in for it.
struct Pair {
  int64_t block[BLOCKS];
};

// Decoded codes of a pair, [lanes][16 n][4 k] each.
struct Decoded {
  const uint8_t* codes[BLOCKS];
};

// What multiply needs of a segment.
struct Segment {
  int64_t index;
  int64_t lanes;
  int64_t place[BLOCKS];  // of scales and zero points
};

// One row tile times the pair's 32 columns of a segment. x: [lanes][ROWS]; sums: [HEIGHT][32].
template <int DIGITS, int HEIGHT>
TORCHCOINFER_AVX512 void multiply(const QuantMatrix& w, const Segment& segment, const Decoded& decoded,
                                  const int32_t* x, const int32_t* starts, const float* scales, float* sums) {
  constexpr int ROWS = HEIGHT * DIGITS;
  __m512i parts[ROWS][BLOCKS];
#pragma GCC unroll 12
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
    for (int b = 0; b < BLOCKS; ++b) parts[m][b] = start(w, segment.place[b], starts[m]);
  const uint8_t *left = decoded.codes[0], *right = decoded.codes[1];
  for (int64_t i = 0; i < segment.lanes; ++i, left += VECTOR_BYTES, right += VECTOR_BYTES, x += ROWS) {
    const __m512i codes[BLOCKS] = {load_vector(left), load_vector(right)};
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m) {
      const __m512i lane = _mm512_set1_epi32(x[m]);
      add_products(codes[0], lane, parts[m][0]);
      add_products(codes[1], lane, parts[m][1]);
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < BLOCKS; ++b) {
    const __m512 scale = load_scales(w, segment.place[b]);
#pragma GCC unroll 12
    for (int m = 0; m < HEIGHT; ++m) {
      __m512i digits[DIGITS];
#pragma GCC unroll 3
      for (int d = 0; d < DIGITS; ++d) digits[d] = parts[m * DIGITS + d][b];
      add_segment<DIGITS>(digits, scale, DIGITS == 1 ? 1.f : scales[m], sums + m * COLUMNS + b * BLOCK_N);
    }
  }
}

using Multiply = void (*)(const QuantMatrix&, const Segment&, const Decoded&, const int32_t*, const int32_t*,
                          const float*, float*);

template <int DIGITS, int HEIGHT = RowTiles::MOST / DIGITS>
Multiply multiply_of_height(int64_t height) {
  if (height == HEIGHT) return multiply<DIGITS, HEIGHT>;
  if constexpr (HEIGHT > 1) return multiply_of_height<DIGITS, HEIGHT - 1>(height);
  return nullptr;
}

Multiply multiply_of(int digits, int64_t height) {
  if (digits == 1) return multiply_of_height<1>(height);
  return digits == 2 ? multiply_of_height<2>(height) : multiply_of_height<3>(height);
}

// Fetches the packed tiles of a pair some way ahead of where they are decoded, a few lines at a time while something
// else is computed; beyond the pair's last tile come the next pair's.
struct Fetch {
  const QuantMatrix& w;
  Pair pair;
  int64_t end_block;
  int64_t line;         // of the pair's blocks, to be fetched next
  int64_t block_lines;

  void lines(int64_t count) {
    for (; count > 0; --count, ++line) {
      const bool beyond = line >= block_lines;
      for (int64_t b = 0; b < BLOCKS; ++b) {
        const int64_t block = pair.block[b] + (beyond ? BLOCKS : 0), place = beyond ? line - block_lines : line;
        if (block < end_block)
          _mm_prefetch(reinterpret_cast<const char*>(w.packed + (block * block_lines + place) * VECTOR_BYTES), _MM_HINT_T0);
      }
    }
  }
};

template <int BITS>
TORCHCOINFER_AVX512 Decoded decode_chunk(const QuantMatrix& w, const Pair& pair, int64_t tiles, int64_t begin,
                                         int64_t end, uint8_t* workspace) {
  Decoded decoded;
  for (int64_t b = 0; b < BLOCKS; ++b) {
    const uint8_t* tile = w.packed + (pair.block[b] * tiles + begin) * tile_bytes(BITS);
    if (BITS == 8) {  // vectors of 8-bit tiles are quads already
      decoded.codes[b] = tile;
      continue;
    }
    uint8_t* out = workspace + b * MOST_CHUNK_TILES * TILE_CODES;
    decoded.codes[b] = out;
    for (int64_t t = begin; t < end; ++t, tile += tile_bytes(BITS), out += TILE_CODES)
#pragma GCC unroll 8
      for (int q = 0; q < QUADS; ++q) _mm512_store_si512(out + q * VECTOR_BYTES, decode_quad<BITS>(tile, q));
  }
  return decoded;
}

// All rows times a pair. sums: [rows][32].
template <int BITS>
void gemm_pair(const QuantMatrix& w, const DigitRows& x, const Pair& pair, int64_t end_block, uint8_t* workspace,
               float* sums) {
  const Segments segments(w.K, w.group_size);
  const DigitTiles tiles(x.rows, x.digits);
  const int64_t low = x.rows / tiles.count;  // heights are low and low + 1
  const Multiply multiply[2] = {multiply_of(x.digits, low), multiply_of(x.digits, tiles.count * low < x.rows ? low + 1 : low)};
  const int64_t chunk = ceil_div(LEAST_CHUNK_TILES, segments.tiles_each);  // segments
  std::memset(sums, 0, x.rows * COLUMNS * sizeof(float));
  for (int64_t s0 = 0; s0 < segments.count; s0 += chunk) {
    const int64_t s1 = std::min(s0 + chunk, segments.count), t0 = segments.begin(s0), t1 = segments.end(s1 - 1);
    const Decoded decoded = decode_chunk<BITS>(w, pair, segments.tiles, t0, t1, workspace);
    const int64_t steps = tiles.count * (s1 - s0);
    const int64_t lines_each = ceil_div((t1 - t0) * BITS, steps);
    Fetch fetch{w, pair, end_block, (t1 + CHUNKS_AHEAD * (t1 - t0)) * BITS, segments.tiles * BITS};
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = segments.begin(s), group = segments.group(s);
      const Segment segment{s, (segments.end(s) - t) * QUADS,
                            {pair.block[0] * segments.groups() + group, pair.block[1] * segments.groups() + group}};
      const Decoded here{{decoded.codes[0] + (t - t0) * TILE_CODES, decoded.codes[1] + (t - t0) * TILE_CODES}};
      for (int64_t i = 0; i < tiles.count; ++i) {
        const int64_t row = tiles.begin(i), height = tiles.begin(i + 1) - row, width = height * x.digits;
        fetch.lines(lines_each);
        multiply[height - low](w, segment, here, x.lanes + row * x.row_lanes + t * QUADS * width,
                               x.starts + (row * segments.count + s * height) * x.digits,
                               x.scales + row * x.scales_each() + s * height, sums + row * COLUMNS);
      }
    }
  }
}

template <int DIGITS>
TORCHCOINFER_AVX512 void store_pair(const float* sums, const DigitRows& x, const Pair& pair, const Output& out) {
  const int64_t count = pair.block[1] > pair.block[0] ? BLOCKS : 1;
  for (int64_t m = 0; m < x.rows; ++m)
    for (int64_t b = 0; b < count; ++b)
      store_scaled<DIGITS>(sums + m * COLUMNS + b * BLOCK_N, x, m, out, m, pair.block[b]);
}

template <int BITS>
void gemm_bits(const QuantMatrix& w, const DigitRows& x, const Output& out, int64_t begin, int64_t end) {
  const Buffer<uint8_t> workspace(BLOCKS * MOST_CHUNK_TILES * TILE_CODES);
  const Buffer<float> sums(x.rows * COLUMNS);
  for (int64_t block = begin; block < end; block += BLOCKS) {
    const Pair pair{{block, std::min(block + 1, end - 1)}};
    gemm_pair<BITS>(w, x, pair, end, workspace.get(), sums.get());
    (x.digits == 1 ? store_pair<1> : store_pair<2>)(sums.get(), x, pair, out);
  }
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
