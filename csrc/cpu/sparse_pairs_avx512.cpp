// Float survivors times bfloat16 rows: few rows straight from the stream, many from windows that are spread once into
// the cache. AVX-512.

#include "cpu/sparse_parts.h"

#if TORCHCOINFER_X86

#include <atomic>

#include "cpu/buffer.h"
#include "cpu/sparse_pairs_avx512.h"
#include "cpu/sparse_stream.h"
#include "cpu/store_avx512.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int64_t MOST_BLOCKS = 4;              // that pass over x together
constexpr int64_t ROUNDED_TILES = 32;              // of a window that is rounded: few survivors, or it leaves L1
constexpr int64_t LINE_VALUES = 32;                // of a cache line
constexpr int64_t ENOUGH_PARTS = 8;
constexpr int64_t ROWS_TOGETHER = 480;          // rows of one task where there are blocks enough to share out
constexpr int64_t ROWS_FEW_BLOCKS = 96;         // and where there are not
constexpr int64_t ENOUGH_BLOCKS = 32;

// Rows of x: element (m, k) at m * stride + k, K padded with zeros to whole tiles.
struct Rows {
  const uint16_t* values;
  int64_t rows;
  int64_t stride;
};

template <bool AHEAD>
void few(const uint16_t* survivors, const uint64_t* masks, int64_t words, const Rows& x, int64_t column, float* sums) {
  const uint16_t* columns = x.values + column;
  if (x.rows == 1) few_rows<1, AHEAD>(survivors, masks, words, columns, x.stride, sums);
  if (x.rows == 2) few_rows<2, AHEAD>(survivors, masks, words, columns, x.stride, sums);
  if (x.rows == 3) few_rows<3, AHEAD>(survivors, masks, words, columns, x.stride, sums);
  if (x.rows == 4) few_rows<4, AHEAD>(survivors, masks, words, columns, x.stride, sums);
}

// The open window's survivors as bfloat16, in place where they are stored so.
const uint16_t* window_survivors(const SparseMatrix& w, SurvivorStream& stream, uint16_t* rounded) {
  const void* stored = stream.floats();
  if (w.value_dtype == Dtype::bfloat16) return static_cast<const uint16_t*>(stored);
  round_survivors(stored, w.value_dtype, stream.count(), rounded);
  return rounded;
}

// Nearly equal register tiles.
struct Heights {
  int64_t rows;
  int64_t count;

  explicit Heights(int64_t rows) : rows(rows), count(ceil_div(rows, MOST_HEIGHT)) {}
  int64_t begin(int64_t tile) const {
    return tile * rows / count;
  }
};

// Rows [row, row + height) of x, four columns at a time: panel [K / 4][height].
void to_panel(const Rows& x, int64_t row, int64_t height, uint16_t* panel) {
  for (int64_t k = 0; k < x.stride; k += GROUP_K)
    for (int64_t m = 0; m < height; ++m, panel += GROUP_K)
      std::memcpy(panel, x.values + (row + m) * x.stride + k, GROUP_K * sizeof *panel);
}

// The sums of a block's 16 rows of W from the two halves.
TORCHCOINFER_AVX512 void store_block(const float* sums, int64_t rows, const Output& out, int64_t block) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t m = 0; m < rows; ++m, sums += SUMS) {
    const __m512 left = _mm512_loadu_ps(sums), right = _mm512_loadu_ps(sums + 16);
    const __m512 total =
        _mm512_add_ps(_mm512_permutex2var_ps(left, even, right), _mm512_permutex2var_ps(left, odd, right));
    store_sums(total, out, m, block);
  }
}

struct Workspace {
  const Buffer<StreamScratch> scratch;
  const Buffer<uint16_t> rounded, places;
  const Buffer<float> sums;

  Workspace(int64_t rows, int64_t blocks, bool few)
      : scratch(1),
        rounded(ROUNDED_TILES * TILE_GROUPS * GROUP_PLACES + SURVIVOR_SLACK),
        places(few ? 0 : blocks * WINDOW_SURVIVORS),
        sums(blocks * rows * SUMS) {}
};

bool few_block(const SparseCall& call, const Rows& x, int64_t block, const Workspace& work) {
  const SparseMatrix& w = call.weight;
  SurvivorStream stream(w, spread_of(Isa::avx512), block, work.scratch.get());
  const bool ahead = w.value_dtype == Dtype::bfloat16;
  const int64_t most = std::min(stream.most_tiles(), ahead ? MOST_WINDOW_TILES : ROUNDED_TILES);
  std::memset(work.sums.get(), 0, x.rows * SUMS * sizeof(float));
  for (int64_t t = 0; t < w.tiles(); t += most) {
    const int64_t tiles = std::min(most, w.tiles() - t);
    if (!stream.open(t, tiles)) return false;
    const uint16_t* survivors = window_survivors(w, stream, work.rounded.get());
    (ahead ? few<true> : few<false>)(survivors, stream.masks(), tiles * TILE_GROUPS, x, t * TILE_K, work.sums.get());
  }
  store_block(work.sums.get(), x.rows, call.out, block);
  return stream.complete();
}

// Blocks [first, last) times rows [row, row + rows) of x, given as panels.
bool many_blocks(const SparseCall& call, const Rows& panels, int64_t row, int64_t rows, int64_t first, int64_t last,
                 const Workspace& work) {
  const SparseMatrix& w = call.weight;
  const Heights heights(rows);
  const auto spread = w.value_dtype == Dtype::bfloat16 ? spread_window<true> : spread_window<false>;
  SurvivorStream streams[MOST_BLOCKS] = {};
  for (int64_t b = first; b < last; ++b)
    streams[b - first] = SurvivorStream(w, spread_of(Isa::avx512), b, work.scratch.get());
  std::memset(work.sums.get(), 0, (last - first) * rows * SUMS * sizeof(float));
  for (int64_t t = 0; t < w.tiles(); t += WINDOW_TILES) {
    const int64_t end = std::min(t + WINDOW_TILES, w.tiles()), words = (end - t) * TILE_GROUPS;
    for (int64_t b = 0; b < last - first; ++b) {
      if (!streams[b].open(t, end - t)) return false;
      const uint16_t* survivors = window_survivors(w, streams[b], work.rounded.get());
      spread(survivors, streams[b].masks(), words, work.places.get() + b * WINDOW_SURVIVORS);
    }
    for (int64_t i = 0; i < heights.count; ++i) {
      const int64_t top = heights.begin(i), height = heights.begin(i + 1) - top;
      const uint16_t* panel = panels.values + (row + top) * panels.stride + t * TILE_K * height;
      // the next tile's part of x is a jump away, where no hardware prefetcher looks
      const int64_t next = i + 1 < heights.count ? i + 1 : 0, next_t = next ? t : end;
      const int64_t next_top = heights.begin(next), next_height = heights.begin(next + 1) - next_top;
      const uint16_t* next_panel = panels.values + (row + next_top) * panels.stride + next_t * TILE_K * next_height;
      const int64_t lines = words * GROUP_K * next_height / LINE_VALUES, ahead = ceil_div(lines, last - first);
      for (int64_t b = 0; b < last - first; ++b) {
        for (int64_t line = b * ahead; line < (b + 1) * ahead; ++line)
          _mm_prefetch(reinterpret_cast<const char*>(next_panel + line * LINE_VALUES), _MM_HINT_T0);
        MULTIPLY[height](work.places.get() + b * WINDOW_SURVIVORS, words, panel,
                         work.sums.get() + (b * rows + top) * SUMS);
      }
    }
  }
  Output out = call.out;
  out.y = static_cast<char*>(out.y) + row * out.row_stride * dtype_bytes(out.dtype);
  bool sound = true;
  for (int64_t b = 0; b < last - first; ++b) {
    store_block(work.sums.get() + b * rows * SUMS, rows, out, first + b);
    sound = sound && streams[b].complete();
  }
  return sound;
}

bool multiply_few(const SparseCall& call, const Rows& x, const ParallelFor& parallel) {
  const int64_t blocks = ceil_div(call.weight.N, BLOCK_N), work = BLOCK_N * (x.stride + 1) * (x.rows + 1);
  std::atomic<bool> sound{true};
  parallel(blocks, ceil_div(SPARSE_WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    const Workspace workspace(x.rows, 1, true);
    for (int64_t block = begin; block < end; ++block)
      if (!few_block(call, x, block, workspace)) sound = false;
  });
  return sound;
}

bool multiply_many(const SparseCall& call, const Rows& x, const ParallelFor& parallel) {
  const int64_t blocks = ceil_div(call.weight.N, BLOCK_N);
  const int64_t rows_each = blocks >= ENOUGH_BLOCKS ? ROWS_TOGETHER : ROWS_FEW_BLOCKS;
  const int64_t row_parts = ceil_div(x.rows, rows_each);
  const int64_t together = std::clamp<int64_t>(blocks * row_parts / ENOUGH_PARTS, 1, MOST_BLOCKS);
  const int64_t block_parts = ceil_div(blocks, together);
  const Buffer<uint16_t> values(x.rows * x.stride);
  for (int64_t row = 0; row < x.rows; row += rows_each) {
    const Heights heights(std::min(rows_each, x.rows - row));
    parallel(heights.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t top = row + heights.begin(i);
        to_panel(x, top, row + heights.begin(i + 1) - top, values.get() + top * x.stride);
      }
    });
  }
  const Rows panels{values.get(), x.rows, x.stride};
  const int64_t work = together * BLOCK_N * (x.stride + 1) * std::min(x.rows, rows_each);
  std::atomic<bool> sound{true};
  parallel(row_parts * block_parts, ceil_div(SPARSE_WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    const Workspace workspace(std::min(rows_each, x.rows), together, false);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / block_parts * rows_each, first = task % block_parts * together;
      if (!many_blocks(call, panels, row, std::min(rows_each, x.rows - row), first,
                       std::min(blocks, first + together), workspace))
        sound = false;
    }
  });
  return sound;
}

}  // namespace

bool multiply_pairs(const SparseCall& call, const ParallelFor& parallel) {
  const int64_t stride = call.weight.tiles() * TILE_K, K = call.weight.K;
  const auto* source = static_cast<const uint16_t*>(call.x.data);
  const bool padded = K == stride && call.x.row_stride == K;
  const Buffer<uint16_t> values(padded ? 0 : call.rows * stride);
  if (!padded)
    for (int64_t m = 0; m < call.rows; ++m) {
      std::memcpy(values.get() + m * stride, source + m * call.x.row_stride, K * sizeof *source);
      std::fill_n(values.get() + m * stride + K, stride - K, uint16_t{0});
    }
  const Rows x{padded ? source : values.get(), call.rows, stride};
  return x.rows <= FEW_ROWS ? multiply_few(call, x, parallel) : multiply_many(call, x, parallel);
}

}  // namespace torchcoinfer::avx512

#endif
