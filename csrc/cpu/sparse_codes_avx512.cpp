// Quantized survivors times one row tile of digits (digits_avx512.h): a window's codes are unpacked into L1, then 64
// places (16 n x 4 k) expand into a register, with zero points where nothing was kept, and are multiplied there, lane =
// n. AVX-512 VBMI2 and VNNI.

#include "cpu/sparse_parts.h"

#if TORCHCOINFER_X86

#include <atomic>

#include "cpu/buffer.h"
#include "cpu/finish_avx512.h"
#include "cpu/sparse_chunk_avx512.h"
#include "cpu/sparse_stream.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int64_t LEAD_BYTES = 512;    // of what is fetched for the next window
constexpr int MOST_PAIRED_BITS = 6;    // code minus zero point is an int8

int digit_count(const SparseCall& call) {
  return call.activation_bits == 8 ? 1 : call.x.dtype == Dtype::float32 ? 3 : 2;
}

template <int BITS>
TORCHCOINFER_AVX512 void unpack_bits(const uint8_t* chunks, int64_t count, uint8_t* codes) {
  for (int64_t c = 0; c < count; ++c)
    _mm512_storeu_si512(codes + c * CHUNK, chunk_codes<BITS>(chunks + c * chunk_bytes(BITS)));
}

void unpack(const SurvivorStream::Packed& window, int bits, uint8_t* codes) {
  if (bits == 2) unpack_bits<2>(window.chunks, window.count, codes);
  if (bits == 3) unpack_bits<3>(window.chunks, window.count, codes);
  if (bits == 4) unpack_bits<4>(window.chunks, window.count, codes);
  if (bits == 5) unpack_bits<5>(window.chunks, window.count, codes);
  if (bits == 6) unpack_bits<6>(window.chunks, window.count, codes);
  if (bits == 8) unpack_bits<8>(window.chunks, window.count, codes);
}

// Fetches the next window's chunks and masks while this one's groups are multiplied, a tile's share with every tile.
struct Fetch {
  const char* chunks;
  int64_t tile_bytes;     // of chunks
  int64_t masks_ahead;    // bytes

  Fetch(const SurvivorStream::Packed& window, int bits, int64_t tiles)
      : chunks(reinterpret_cast<const char*>(window.chunks + window.count * chunk_bytes(bits)) + LEAD_BYTES),
        tile_bytes(ceil_div(window.count * chunk_bytes(bits), tiles)),
        masks_ahead(tiles * TILE_GROUPS * static_cast<int64_t>(sizeof(uint64_t)) + LEAD_BYTES) {}
  void tile(const uint64_t* masks) {
    _mm_prefetch(reinterpret_cast<const char*>(masks) + masks_ahead, _MM_HINT_T0);
    for (int64_t b = 0; b < tile_bytes; b += VECTOR_BYTES) _mm_prefetch(chunks + b, _MM_HINT_T0);
    chunks += tile_bytes;
  }
};

// parts += the digits' products with `tiles` tiles; ROWS counts digits as rows. Returns the survivors taken.
template <int ROWS, int CHAINS>
TORCHCOINFER_AVX512_INLINE int64_t add_tiles(const uint8_t* survivors, const uint64_t* masks, int64_t tiles,
                                             __m512i filler, const int32_t* x, Fetch& fetch,
                                             __m512i (*parts)[CHAINS]) {
  const uint8_t* next = survivors;
  for (int64_t t = 0; t < tiles; ++t, masks += TILE_GROUPS) {
    fetch.tile(masks);
#pragma GCC unroll 8
    for (int i = 0; i < TILE_GROUPS; ++i, x += ROWS) {
      __m512i some = load_vector(next);
      __mmask64 places;
      asm("kmovq %1, %0" : "=k"(places) : "m"(masks[i]));
      asm("" : "+v"(some));  // kept apart from the expansion: an expanding load is slow on Zen 5
      next += __builtin_popcountll(masks[i]);
      const __m512i codes = _mm512_mask_expand_epi8(filler, places, some);
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) add_products(codes, _mm512_set1_epi32(x[m]), parts[m][i % CHAINS]);
    }
  }
  return next - survivors;
}

// One n-block; `w`: its scales and zero points.
template <int DIGITS, int HEIGHT>
TORCHCOINFER_AVX512 bool multiply_block(const SparseCall& call, const QuantMatrix& w, const DigitRows& x, int64_t block,
                                        StreamScratch* scratch) {
  constexpr int ROWS = DIGITS * HEIGHT, CHAINS = ROWS <= 2 ? 2 : 1;
  const Segments segments(w.K, w.group_size);
  SurvivorStream stream(call.weight, SPREAD_AVX512, block, scratch);
  alignas(64) float sums[HEIGHT][BLOCK_N] = {};
  for (int64_t t = 0; t < segments.tiles; t += CODE_WINDOW_TILES) {
    const int64_t tiles = std::min(CODE_WINDOW_TILES, segments.tiles - t);
    if (!stream.open(t, tiles)) return false;
    const SurvivorStream::Packed window = stream.packed();
    unpack(window, w.bits, scratch->codes);
    const uint8_t* survivors = scratch->codes + window.before;
    Fetch fetch(window, w.bits, tiles);
    for (int64_t i = 0; i < tiles; i += segments.tiles_each) {  // windows are whole segments
      const int64_t s = (t + i) / segments.tiles_each, count = std::min(tiles - i, segments.tiles_each);
      const int64_t place = block * segments.groups() + segments.group(s);
      const __m512i filler = _mm512_mullo_epi32(load_zeros(w, place), _mm512_set1_epi32(0x01010101));
      __m512i parts[ROWS][CHAINS];
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
        parts[m][0] = start(w, place, x.starts[s * ROWS + m]);
        if (CHAINS > 1) parts[m][1] = _mm512_setzero_si512();
      }
      survivors += add_tiles<ROWS, CHAINS>(survivors, stream.masks() + i * TILE_GROUPS, count, filler,
                                           x.lanes + (t + i) * QUADS * ROWS, fetch, parts);
      const __m512 scale = load_scales(w, place);
#pragma GCC unroll 16
      for (int m = 0; m < HEIGHT; ++m) {
        __m512i digits[DIGITS];
#pragma GCC unroll 3
        for (int d = 0; d < DIGITS; ++d) {
          digits[d] = parts[m * DIGITS + d][0];
          if (CHAINS > 1) digits[d] = _mm512_add_epi32(digits[d], parts[m * DIGITS + d][1]);
        }
        add_segment<DIGITS>(digits, scale, DIGITS == 1 ? 1.f : x.scales[s * HEIGHT + m], sums[m]);
      }
    }
  }
  for (int m = 0; m < HEIGHT; ++m) store_scaled<DIGITS>(sums[m], x, m, call.out, m, block);
  return stream.complete();
}

using Kernel = bool (*)(const SparseCall&, const QuantMatrix&, const DigitRows&, int64_t, StreamScratch*);

template <int DIGITS, int HEIGHT = DigitTiles::ALONE / DIGITS>
Kernel kernel_of_height(int64_t height) {
  if (height == HEIGHT) return multiply_block<DIGITS, HEIGHT>;
  if constexpr (HEIGHT > 1) return kernel_of_height<DIGITS, HEIGHT - 1>(height);
  return nullptr;
}

Kernel kernel_of(const DigitRows& x) {
  if (x.digits == 1) return kernel_of_height<1>(x.rows);
  if (x.digits == 2) return kernel_of_height<2>(x.rows);
  return kernel_of_height<3>(x.rows);
}

}  // namespace

bool are_few_codes(const SparseCall& call) {
  return call.weight.bits && DigitTiles(call.rows, digit_count(call)).count == 1;
}

bool multiply_few_codes(const SparseCall& call, const ParallelFor& parallel) {
  const SparseMatrix& sparse = call.weight;
  const QuantMatrix w{nullptr,     sparse.scales,     sparse.zeros, sparse.scale_dtype,
                      sparse.bits, sparse.group_size, sparse.N,     sparse.K};
  const Segments segments(w.K, w.group_size);
  const int digits = digit_count(call);
  const int64_t row_lanes = segments.tiles * QUADS * digits;
  const Buffer<int32_t> lanes(call.rows * row_lanes), starts(call.rows * segments.count * digits);
  const Buffer<float> scales(call.rows * std::max<int64_t>(segments.count, 1));
  digit_rows(call.x, 0, DigitTiles(call.rows, digits), segments, digits, w.zeros ? 1 : implicit_zero(w.bits),
             {lanes.get(), starts.get(), scales.get()}, 0, 1);
  const DigitRows x{lanes.get(), starts.get(), scales.get(), call.rows, row_lanes, segments.count, digits};
  if (sparse.paired && w.bits <= MOST_PAIRED_BITS) return multiply_few_paired(call, w, x, parallel);
  const Kernel kernel = kernel_of(x);
  const int64_t blocks = ceil_div(w.N, BLOCK_N), work = BLOCK_N * (w.K + 1) * (call.rows + 1);
  std::atomic<bool> sound{true};
  parallel(blocks, ceil_div(SPARSE_WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    const Buffer<StreamScratch> scratch(1);
    for (int64_t block = begin; block < end; ++block)
      if (!kernel(call, w, x, block, scratch.get())) sound = false;
  });
  return sound;
}

}  // namespace torchcoinfer::avx512

#endif
