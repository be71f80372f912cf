// Quantized survivors times up to four rows: a window's codes are unpacked into L1, 64 places (16 n x 4 k) expand into
// a register, with zero points where nothing was kept, and are multiplied there as the dense kernels multiply theirs
// (gemv_avx512.cpp): lane = n. AVX-512 VBMI2.

#include "cpu/sparse_parts.h"

#if TORCHCOINFER_X86

#include <atomic>

#include "cpu/buffer.h"
#include "cpu/sparse_stream.h"
#include "cpu/store_avx512.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int UNROLL = 4;  // groups

// Chains of additions a row; groups take turns.
template <typename Rows, int ROWS>
constexpr int CHAINS = std::is_same_v<Rows, FloatRows> || ROWS <= 2 ? 4 : 2;

template <typename Rows>
struct Kind {
  using Part = __m512;
};
template <>
struct Kind<CodeRows> {
  using Part = __m512i;
};

template <typename T>
TORCHCOINFER_AVX512_INLINE int load_four_bytes(const T* data) {
  int bits;
  std::memcpy(&bits, data, sizeof bits);
  return bits;
}

// One group's codes times four columns from k on; `turn`: index of the group, for the chains.
template <int BITS, int ROWS>
TORCHCOINFER_AVX512_INLINE void add_group(const Values<BITS>& values, __m512i codes, const FloatRows& x, int64_t k, int,
                                          __m512 (*parts)[CHAINS<FloatRows, ROWS>]) {
  if constexpr (!Values<BITS>::FLOAT_TABLE) codes = _mm512_sub_epi8(codes, bytes_of(Values<BITS>::CENTER));
  const __m512 four[4] = {values.template to_float<0>(codes), values.template to_float<1>(codes),
                          values.template to_float<2>(codes), values.template to_float<3>(codes)};
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      parts[m][i] = _mm512_fmadd_ps(four[i], _mm512_set1_ps(x.values[m * x.stride + k + i]), parts[m][i]);
}
template <int BITS, int ROWS>
TORCHCOINFER_AVX512_INLINE void add_group(const Values<BITS>&, __m512i codes, const CodeRows& x, int64_t k, int turn,
                                          __m512i (*parts)[CHAINS<CodeRows, ROWS>]) {
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m) {
    __m512i& part = parts[m][turn % CHAINS<CodeRows, ROWS>];
    part = _mm512_dpbusd_epi32(part, codes, _mm512_set1_epi32(load_four_bytes(x.values + m * x.stride + k)));
  }
}

TORCHCOINFER_AVX512_INLINE __m512 join(__m512 a, __m512 b) {
  return _mm512_add_ps(a, b);
}
TORCHCOINFER_AVX512_INLINE __m512i join(__m512i a, __m512i b) {
  return _mm512_add_epi32(a, b);
}

// The finished sums of a segment without the zero points' share; `zeros` as stored in the places.
template <int BITS, typename Rows>
TORCHCOINFER_AVX512_INLINE __m512 finish(__m512 part, __m512i zeros, const Rows& x, int64_t place) {
  if (!x.sums) return part;
  const __m512i offset = _mm512_sub_epi32(zeros, _mm512_set1_epi32(Values<BITS>::CENTER));
  return _mm512_fnmadd_ps(_mm512_cvtepi32_ps(offset), _mm512_set1_ps(x.sums[place]), part);
}
template <int BITS>
TORCHCOINFER_AVX512_INLINE __m512 finish(__m512i part, __m512i zeros, const CodeRows& x, int64_t place) {
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(part, _mm512_mullo_epi32(zeros, _mm512_set1_epi32(x.sums[place]))));
}

// Words of one segment: sums [ROWS] += scale * segment. zeros, scales: of the 16 n. Returns the survivors taken.
template <int BITS, int ROWS, typename Rows>
TORCHCOINFER_AVX512_INLINE int64_t add_segment(const Values<BITS>& values, const uint8_t* survivors,
                                               const uint64_t* masks, int64_t words, const Rows& x, int64_t column,
                                               int64_t segment, int64_t segments, __m512i zeros, __m512 scale,
                                               __m512* sums) {
  using Part = typename Kind<Rows>::Part;
  constexpr int CHAIN_COUNT = CHAINS<Rows, ROWS>;
  const __m512i filler = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(0x01010101));
  Part parts[ROWS][CHAIN_COUNT];
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int c = 0; c < CHAIN_COUNT; ++c) parts[m][c] = Part{};
  const uint8_t* next = survivors;
  for (int64_t w = 0; w < words; w += UNROLL)
#pragma GCC unroll 4
    for (int i = 0; i < UNROLL; ++i) {
      __m512i some = load_vector(next);
      __mmask64 places;
      asm("kmovq %1, %0" : "=k"(places) : "m"(masks[w + i]));
      asm("" : "+v"(some));  // kept apart from the expansion: an expanding load is slow on Zen 5
      next += __builtin_popcountll(masks[w + i]);
      const __m512i codes = _mm512_mask_expand_epi8(filler, places, some);
      add_group<BITS, ROWS>(values, codes, x, column + GROUP_K * (w + i), i, parts);
    }
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m) {
    Part part = parts[m][0];
#pragma GCC unroll 4
    for (int c = 1; c < CHAIN_COUNT; ++c) part = join(part, parts[m][c]);
    sums[m] = _mm512_fmadd_ps(scale, finish<BITS>(part, zeros, x, m * segments + segment), sums[m]);
  }
  return next - survivors;
}

TORCHCOINFER_AVX512_INLINE __m512 row_scale(const CodeRows& x, int64_t m) {
  return _mm512_set1_ps(x.scales[m]);
}
template <typename Rows>
TORCHCOINFER_AVX512_INLINE __m512 row_scale(const Rows&, int64_t) {
  return _mm512_set1_ps(1.f);
}

// One n-block; codes and zero points are moved by `shift`.
template <int BITS, int ROWS, typename Rows>
TORCHCOINFER_AVX512 bool multiply_block(const SparseCall& call, const Rows& x, int64_t block, int shift,
                                        StreamScratch* scratch) {
  const SparseMatrix& w = call.weight;
  const Segments segments(w.K, w.group_size);
  const Values<BITS> values;
  SurvivorStream stream(w, SPREAD_AVX512, block, scratch);
  __m512 sums[ROWS];
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m) sums[m] = _mm512_setzero_ps();
  for (int64_t t = 0; t < w.tiles(); t += WINDOW_TILES) {
    const int64_t tiles = std::min(WINDOW_TILES, w.tiles() - t);
    if (!stream.open(t, tiles)) return false;
    const uint8_t* survivors = stream.codes(shift);
    for (int64_t i = 0; i < tiles; i += segments.tiles_each) {  // windows are whole segments
      const int64_t s = (t + i) / segments.tiles_each, part = std::min(tiles - i, segments.tiles_each);
      const int64_t place = (block * segments.groups() + segments.group(s)) * BLOCK_N;
      const __m512 scale = load_floats(w.scales, w.scale_dtype, place);
      __m512i zeros = _mm512_set1_epi32(implicit_zero(w.bits) + shift);
      if (w.zeros) {
        const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zeros + place));
        zeros = _mm512_add_epi32(_mm512_cvtepu8_epi32(stored), _mm512_set1_epi32(shift));
      }
      survivors += add_segment<BITS, ROWS>(values, survivors, stream.masks() + i * TILE_GROUPS, part * TILE_GROUPS, x,
                                           (t + i) * TILE_K, s, segments.count, zeros, scale, sums);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; ++m) store_sums(_mm512_mul_ps(sums[m], row_scale(x, m)), call.out, m, block);
  return stream.complete();
}

template <int BITS, typename Rows>
bool multiply_rows(const SparseCall& call, const Rows& x, int64_t block, int shift, StreamScratch* scratch) {
  if (x.rows == 1) return multiply_block<BITS, 1>(call, x, block, shift, scratch);
  if (x.rows == 2) return multiply_block<BITS, 2>(call, x, block, shift, scratch);
  if (x.rows == 3) return multiply_block<BITS, 3>(call, x, block, shift, scratch);
  return multiply_block<BITS, 4>(call, x, block, shift, scratch);
}

// The narrowest table that holds a block's codes with their center in its middle, and its zero points too: of 4, 5 or
// 6 bits, or 8, where any byte is converted.
struct Table {
  int bits;
  int shift;

  Table(const SparseMatrix& w, int64_t block)
      : bits(std::max(w.bits, 4)), shift(implicit_zero(bits) - implicit_zero(w.bits)) {
    if (!w.zeros) return;
    const int64_t count = group_count(w.K, w.group_size) * BLOCK_N;
    int largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max<int>(largest, w.zeros[block * count + i]);
    if (largest + shift < 1 << bits) return;
    bits = 8;
    shift = std::min(implicit_zero(8) - implicit_zero(w.bits), 255 - largest);
  }
};

template <typename Rows>
bool multiply_codes(const SparseCall& call, const Rows& x, const ParallelFor& parallel) {
  const int64_t blocks = ceil_div(call.weight.N, BLOCK_N), work = BLOCK_N * (x.stride + 1) * (x.rows + 1);
  std::atomic<bool> sound{true};
  parallel(blocks, ceil_div(SPARSE_WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    const Buffer<StreamScratch> scratch(1);
    for (int64_t block = begin; block < end; ++block) {
      const Table table(call.weight, block);
      const auto multiply = table.bits == 4   ? multiply_rows<4, Rows>
                            : table.bits == 5 ? multiply_rows<5, Rows>
                            : table.bits == 6 ? multiply_rows<6, Rows>
                                              : multiply_rows<8, Rows>;
      if (!multiply(call, x, block, table.shift, scratch.get())) sound = false;
    }
  });
  return sound;
}

}  // namespace

bool multiply_few_codes(const SparseCall& call, const ParallelFor& parallel) {
  const Segments segments(call.weight.K, call.weight.group_size);
  const int64_t rows = call.rows, stride = segments.tiles * TILE_K;
  if (call.activation_bits == 8) {
    const Buffer<int8_t> values(rows * stride);
    const Buffer<float> scales(rows);
    const Buffer<int32_t> sums(rows * segments.count);
    code_rows(call.x, segments, call.isa, 0, rows, values.get(), scales.get(), sums.get());
    return multiply_codes<CodeRows>(call, {values.get(), scales.get(), sums.get(), rows, stride}, parallel);
  }
  const Buffer<float> sum_buffer(rows * segments.count);
  float* sums = call.weight.zeros ? sum_buffer.get() : nullptr;
  const Buffer<float> values(rows * stride);
  float_rows(call.x, segments, call.isa, 0, rows, values.get(), sums);
  return multiply_codes<FloatRows>(call, {values.get(), sums, rows, stride}, parallel);
}

}  // namespace torchcoinfer::avx512

#endif
