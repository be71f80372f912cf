#include "cpu/linear_amx.h"

#if TORCHCOINFER_X86

#include <algorithm>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/finish_avx512.h"

namespace torchcoinfer::amx {
namespace {

using namespace avx512;

constexpr int64_t BLOCKS = 2;                 // n-blocks multiplied at once: a tile of codes each
constexpr int64_t COLUMNS = BLOCKS * BLOCK_N;
constexpr int64_t LEAST_CHUNK_TILES = 4;      // tiles of the format decoded at once: whole segments
constexpr int64_t MOST_CHUNK_TILES = SEGMENT_K / TILE_K;
constexpr int64_t TILE_CODES = TILE_K * BLOCK_N;
constexpr int64_t TILE_LANES = Slabs::MOST_HEIGHT * BLOCK_N;
constexpr int64_t MOST_PLANES = 3;
constexpr int64_t RESIDENT_LANES = 1 << 18;   // of a part of slabs, which stay in L2
constexpr int64_t WORK_GRAIN = 1 << 20;       // multiply-adds that are worth a thread
constexpr int64_t ELEMENT_GRAIN = 1 << 15;    // elements of x that are worth a thread

// What a task works in.
struct Workspace {
  const Buffer<uint8_t> codes;
  const Buffer<int32_t> parts;
  const Buffer<float> sums;

  explicit Workspace(int64_t rows)
      : codes(BLOCKS * (MOST_CHUNK_TILES + 1) * TILE_CODES),
        parts(MOST_PLANES * BLOCKS * TILE_LANES),
        sums(rows * COLUMNS) {}
};

// Registers: sums of plane p and block b in 2p + b; A and B in the rest, two each where there is room.
template <int64_t PLANES>
TileConfig tile_config(const Slabs& slabs) {
  TileConfig config;
  for (int i = 0; i < 2 * PLANES; ++i) config.shape(i, slabs.height, BLOCK_N * sizeof(int32_t));
  if (PLANES <= 2) {
    config.shape(4, slabs.height, slabs.unit_k);
    config.shape(5, slabs.height, slabs.unit_k);
  }
  config.shape(6, PLANES <= 2 ? slabs.unit_k / 4 : slabs.height, PLANES <= 2 ? VECTOR_BYTES : slabs.unit_k);
  config.shape(7, slabs.unit_k / 4, VECTOR_BYTES);
  return config;
}

// The tiles of a chosen configuration, for as long as it lives.
class TilesInUse {
 public:
  explicit TilesInUse(const TileConfig& config) {
    ldtilecfg(config);
  }
  ~TilesInUse() {
    tilerelease();
  }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
};

// One unit of K: PLANES tiles of x, `plane_bytes` apart, times the tiles of two blocks.
template <int64_t PLANES>
inline void multiply_unit(const int32_t* x, int64_t plane_lanes, int64_t row_bytes, const uint8_t* left,
                          const uint8_t* right) {
  if constexpr (PLANES == 3) {
    tileloadd<7>(left, VECTOR_BYTES);
    tileloadd<6>(x, row_bytes);
    tdpbsud<0, 6, 7>();
    tileloadd<6>(x + plane_lanes, row_bytes);
    tdpbsud<2, 6, 7>();
    tileloadd<6>(x + 2 * plane_lanes, row_bytes);
    tdpbsud<4, 6, 7>();
    tileloadd<7>(right, VECTOR_BYTES);
    tdpbsud<5, 6, 7>();
    tileloadd<6>(x + plane_lanes, row_bytes);
    tdpbsud<3, 6, 7>();
    tileloadd<6>(x, row_bytes);
    tdpbsud<1, 6, 7>();
    return;
  }
  tileloadd<4>(x, row_bytes);
  tileloadd<6>(left, VECTOR_BYTES);
  tileloadd<7>(right, VECTOR_BYTES);
  tdpbsud<0, 4, 6>();
  tdpbsud<1, 4, 7>();
  if constexpr (PLANES == 2) {
    tileloadd<5>(x + plane_lanes, row_bytes);
    tdpbsud<2, 5, 6>();
    tdpbsud<3, 5, 7>();
  }
}

// Sums of a segment's products to parts [PLANES][BLOCKS][height][16].
template <int64_t PLANES>
void multiply_segment(const Slabs& slabs, const int32_t* x, const uint8_t* const* codes, int64_t units,
                      int32_t* parts) {
  const int64_t plane_lanes = slabs.height * slabs.unit_k / 4, unit_codes = slabs.unit_k * BLOCK_N;
  tilezero<0>();
  tilezero<1>();
  if constexpr (PLANES > 1) {
    tilezero<2>();
    tilezero<3>();
  }
  if constexpr (PLANES > 2) {
    tilezero<4>();
    tilezero<5>();
  }
  for (int64_t u = 0; u < units; ++u)
    multiply_unit<PLANES>(x + u * PLANES * plane_lanes, plane_lanes, slabs.unit_k, codes[0] + u * unit_codes,
                          codes[1] + u * unit_codes);
  tilestored<0>(parts, VECTOR_BYTES);
  tilestored<1>(parts + TILE_LANES, VECTOR_BYTES);
  if constexpr (PLANES > 1) {
    tilestored<2>(parts + 2 * TILE_LANES, VECTOR_BYTES);
    tilestored<3>(parts + 3 * TILE_LANES, VECTOR_BYTES);
  }
  if constexpr (PLANES > 2) {
    tilestored<4>(parts + 4 * TILE_LANES, VECTOR_BYTES);
    tilestored<5>(parts + 5 * TILE_LANES, VECTOR_BYTES);
  }
}

// Where the scales and zero points of a segment lie, for both blocks.
struct Places {
  int64_t of[BLOCKS];
};

// sums [rows][32] += what a slab's parts of one segment stand for.
template <int DIGITS>
TORCHCOINFER_AVX512 void add_parts(const QuantMatrix& w, const Places& places, const Slabs& slabs, int64_t rows,
                                   const int32_t* parts, const int32_t* starts, const float* scales, float* sums) {
  for (int b = 0; b < BLOCKS; ++b) {
    const __m512 scale = load_scales(w, places.of[b]);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t plane = DIGITS == 1 ? row / slabs.height : 0, m = row - plane * slabs.height;
      __m512i digits[DIGITS];
#pragma GCC unroll 3
      for (int d = 0; d < DIGITS; ++d) {
        const __m512i part = _mm512_load_si512(parts + ((plane + d) * BLOCKS + b) * TILE_LANES + m * BLOCK_N);
        digits[d] = _mm512_add_epi32(part, start(w, places.of[b], starts[row * DIGITS + d]));
      }
      add_segment<DIGITS>(digits, scale, DIGITS == 1 ? 1.f : scales[row], sums + row * COLUMNS + b * BLOCK_N);
    }
  }
}

template <int DIGITS>
TORCHCOINFER_AVX512 void store_rows(const float* sums, const float* scales, const Output& out, int64_t row,
                                    int64_t rows, int64_t block, int64_t blocks) {
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t b = 0; b < blocks; ++b) {
      __m512 values = _mm512_load_ps(sums + m * COLUMNS + b * BLOCK_N);
      if (DIGITS == 1) values = _mm512_mul_ps(values, _mm512_set1_ps(scales[m]));
      store_sums(values, out, row + m, block + b);
    }
}

// Codes of tiles [begin, end) of a block as quads (decode_avx512.h). What lies beyond the last of an odd number of
// tiles is multiplied by zeros.
template <int BITS>
TORCHCOINFER_AVX512 const uint8_t* decode_chunk(const uint8_t* block, int64_t begin, int64_t end, int64_t unit_k,
                                                uint8_t* out) {
  const uint8_t* tile = block + begin * tile_bytes(BITS);
  const bool whole = (end - begin) * TILE_K % unit_k == 0;
  if (BITS == 8 && whole) return tile;  // vectors of 8-bit tiles are quads already
  uint8_t* place = out;
  for (int64_t t = begin; t < end; ++t, tile += tile_bytes(BITS), place += TILE_CODES)
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; ++q) _mm512_store_si512(place + q * VECTOR_BYTES, decode_quad<BITS>(tile, q));
  if (!whole) std::memset(place, 0, TILE_CODES);
  return out;
}

struct SlabDigits {
  const int32_t* lanes;
  const int32_t* starts;
  const float* scales;
};

// Slabs [first, last) times the blocks `block` and, if there are two, `block + 1`.
template <int BITS, int DIGITS, int64_t PLANES>
void multiply_pair(const QuantMatrix& w, const Slabs& slabs, const SlabDigits& x, int64_t first, int64_t last,
                   const Output& out, int64_t block, int64_t blocks, const Workspace& work) {
  const Segments segments(w.K, w.group_size);
  const int64_t wide = slabs.slab_rows(), scales_each = DIGITS == 1 ? 1 : segments.count;
  const int64_t chunk = ceil_div(LEAST_CHUNK_TILES, segments.tiles_each);  // segments
  const int64_t lanes_each = PLANES * slabs.height * (slabs.unit_k / 4);   // of a unit
  std::memset(work.sums.get(), 0, (last - first) * wide * COLUMNS * sizeof(float));
  for (int64_t s0 = 0; s0 < segments.count; s0 += chunk) {
    const int64_t s1 = std::min(s0 + chunk, segments.count), t0 = segments.begin(s0), t1 = segments.end(s1 - 1);
    const uint8_t* decoded[BLOCKS];
    for (int64_t b = 0; b < BLOCKS; ++b) {
      const int64_t at = block + std::min(b, blocks - 1);  // where the second is missing, the first stands in for it
      decoded[b] = decode_chunk<BITS>(w.packed + at * segments.tiles * tile_bytes(BITS), t0, t1, slabs.unit_k,
                                      work.codes.get() + b * (MOST_CHUNK_TILES + 1) * TILE_CODES);
    }
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = segments.begin(s), unit = t * TILE_K / slabs.unit_k;
      const int64_t units = ceil_div((segments.end(s) - t) * TILE_K, slabs.unit_k);
      const uint8_t* codes[BLOCKS] = {decoded[0] + (t - t0) * TILE_CODES, decoded[1] + (t - t0) * TILE_CODES};
      const int64_t group = segments.group(s);
      const Places places{{block * segments.groups() + group, (block + blocks - 1) * segments.groups() + group}};
      for (int64_t slab = first; slab < last; ++slab) {
        multiply_segment<PLANES>(slabs, x.lanes + slab * slabs.slab_lanes() + unit * lanes_each, codes, units,
                                 work.parts.get());
        add_parts<DIGITS>(w, places, slabs, std::min(wide, slabs.rows - slab * wide), work.parts.get(),
                          x.starts + (slab * segments.count + s) * wide * DIGITS,
                          x.scales + (slab * scales_each + (DIGITS == 1 ? 0 : s)) * wide,
                          work.sums.get() + (slab - first) * wide * COLUMNS);
      }
    }
  }
  for (int64_t slab = first; slab < last; ++slab)
    store_rows<DIGITS>(work.sums.get() + (slab - first) * wide * COLUMNS, x.scales + slab * scales_each * wide, out,
                       slab * wide, std::min(wide, slabs.rows - slab * wide), block, blocks);
}

using MultiplyPair = void (*)(const QuantMatrix&, const Slabs&, const SlabDigits&, int64_t, int64_t, const Output&,
                              int64_t, int64_t, const Workspace&);

template <int BITS>
MultiplyPair multiply_pair_of(const Slabs& slabs) {
  if (slabs.digits == 3) return multiply_pair<BITS, 3, 3>;
  if (slabs.digits == 2) return multiply_pair<BITS, 2, 2>;
  return slabs.planes == 2 ? multiply_pair<BITS, 1, 2> : multiply_pair<BITS, 1, 1>;
}

MultiplyPair multiply_pair_of(int bits, const Slabs& slabs) {
  if (bits == 2) return multiply_pair_of<2>(slabs);
  if (bits == 3) return multiply_pair_of<3>(slabs);
  if (bits == 4) return multiply_pair_of<4>(slabs);
  if (bits == 5) return multiply_pair_of<5>(slabs);
  return bits == 6 ? multiply_pair_of<6>(slabs) : multiply_pair_of<8>(slabs);
}

}  // namespace

bool serves(const LinearCall& call) {
  return call.rows * digit_count(call) > RowTiles::MOST;
}

void run_linear(const LinearCall& call, const ParallelFor& parallel) {
  const Segments segments(call.weight.K, call.weight.group_size);
  const Slabs slabs(call.rows, digit_count(call), segments);
  const int64_t wide = slabs.slab_rows(), lanes_each = std::max<int64_t>(slabs.slab_lanes(), 1);
  const Buffer<int32_t> lanes(slabs.count * slabs.slab_lanes());
  const Buffer<int32_t> starts(slabs.count * segments.count * wide * slabs.digits);
  const Buffer<float> scales(slabs.count * wide * (slabs.digits == 1 ? 1 : segments.count));
  const int factor = call.weight.zeros ? 1 : implicit_zero(call.weight.bits);
  parallel(slabs.count, ceil_div(ELEMENT_GRAIN, lanes_each), [&](int64_t begin, int64_t end) {
    digit_slabs(call.x, slabs, segments, factor, {lanes.get(), starts.get(), scales.get()}, begin, end);
  });
  const SlabDigits x{lanes.get(), starts.get(), scales.get()};
  const MultiplyPair multiply = multiply_pair_of(call.weight.bits, slabs);
  const TileConfig config = slabs.planes == 3   ? tile_config<3>(slabs)
                            : slabs.planes == 2 ? tile_config<2>(slabs)
                                                : tile_config<1>(slabs);
  const int64_t first = call.out.first / BLOCK_N, last = ceil_div(call.out.last, BLOCK_N);
  const int64_t block_parts = ceil_div(last - first, BLOCKS);
  const int64_t row_parts = ceil_div(slabs.count, std::max<int64_t>(1, RESIDENT_LANES / lanes_each));
  const int64_t work = COLUMNS * std::max<int64_t>(call.weight.K, 1) * ceil_div(call.rows, row_parts);
  parallel(row_parts * block_parts, ceil_div(WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    const TilesInUse tiles(config);
    const Workspace workspace(ceil_div(slabs.count, row_parts) * wide);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / block_parts, block = first + task % block_parts * BLOCKS;
      multiply(call.weight, slabs, x, part * slabs.count / row_parts, (part + 1) * slabs.count / row_parts, call.out,
               block, std::min(BLOCKS, last - block), workspace);
    }
  });
}

}  // namespace torchcoinfer::amx

#endif
