// Float survivors with float32 products: a window is spread into float32 places in L1, then multiplied with all rows;
// up to four rows take survivors in registers where the instruction set can.

#include <atomic>

#include "cpu/buffer.h"
#include "cpu/sparse_parts.h"
#include "cpu/sparse_stream.h"

namespace torchcoinfer {
namespace {

// sums [rows, 64] of one block.
bool multiply_block(const SparseMatrix& w, const Spread& spread, const FloatRows& x, SurvivorStream stream,
                    float* places, float* sums) {
  const bool few = spread.few && x.rows <= FEW_ROWS;
  const int64_t most = few ? stream.most_tiles() : WINDOW_TILES;
  std::memset(sums, 0, x.rows * GROUP_PLACES * sizeof(float));
  for (int64_t t = 0; t < w.tiles(); t += most) {
    const int64_t tiles = std::min(most, w.tiles() - t), words = tiles * TILE_GROUPS;
    if (!stream.open(t, tiles)) return false;
    const float* columns = x.values + t * TILE_K;
    if (few) {
      spread.few(stream.floats(), w.value_dtype, stream.masks(), words, columns, x.stride, x.rows, sums);
      continue;
    }
    spread.floats(stream.floats(), w.value_dtype, stream.masks(), words, places);
    spread.multiply(places, words, columns, x.stride, x.rows, sums);
  }
  return stream.complete();
}

bool multiply_rows(const SparseCall& call, const FloatRows& x, const ParallelFor& parallel) {
  const SparseMatrix& w = call.weight;
  const Spread& spread = spread_of(call.isa);
  const int64_t blocks = ceil_div(w.N, BLOCK_N), work = BLOCK_N * std::max<int64_t>(w.K, 1) * (x.rows + 1);
  std::atomic<bool> sound{true};
  parallel(blocks, ceil_div(SPARSE_WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    const Buffer<StreamScratch> scratch(1);
    const Buffer<float> places(WINDOW_SURVIVORS), sums(x.rows * GROUP_PLACES);
    for (int64_t block = begin; block < end; ++block) {
      const SurvivorStream stream(w, spread, block, scratch.get());
      if (!multiply_block(w, spread, x, stream, places.get(), sums.get())) sound = false;
      spread.store(sums.get(), x.rows, call.out, block);
    }
  });
  return sound;
}

}  // namespace

bool multiply_floats(const SparseCall& call, const ParallelFor& parallel) {
  const Segments segments(call.weight.K, call.weight.group_size);
  const int64_t rows = call.rows, stride = segments.tiles * TILE_K;
  const Buffer<float> values(rows * stride);
  parallel(rows, ceil_div(SPARSE_ELEMENT_GRAIN, std::max<int64_t>(stride, 1)), [&](int64_t begin, int64_t end) {
    float_rows(call.x, segments, call.isa, begin, end, values.get(), nullptr);
  });
  return multiply_rows(call, {values.get(), nullptr, rows, stride}, parallel);
}

}  // namespace torchcoinfer
