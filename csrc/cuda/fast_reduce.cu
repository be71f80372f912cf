// Adds up what blocks that split K left, always in the same order.

#include "cuda/fast_gemm.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    add_splits(const float* partials, int splits, int64_t rows, int64_t N, const float* row_scales, const float* bias,
               void* y, Element type) {
  const int64_t count = rows * N, step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < count; i += step) {
    float sum = 0.f;
#pragma unroll 4
    for (int split = 0; split < splits; ++split) sum += partials[split * count + i];
    if (row_scales) sum *= row_scales[i / N];
    if (bias) sum += bias[i % N];
    store_element(sum, y, type, i);
  }
}

// A thread block: a part of one tile.
template <int MT>
__global__ void __launch_bounds__(GEMM_THREADS) add_tiles(GemmProblem p, unsigned blocks) {
  constexpr int VALUES = TILE_ROWS<MT> * TILE_COLUMNS;
  const int tile = static_cast<int>(blockIdx.x), begin = tile * p.quads, end = begin + p.quads;
  auto block = static_cast<unsigned>(static_cast<int64_t>(begin) * blocks / p.steps());
  while (p.begin(block + 1, blocks) <= begin) ++block;
  if (p.begin(block, blocks) <= begin && p.begin(block + 1, blocks) >= end) return;  // one block had it all
  for (int at = blockIdx.y * GEMM_THREADS + threadIdx.x; at < VALUES; at += gridDim.y * GEMM_THREADS) {
    float sum = 0.f;
    for (unsigned b = block; p.begin(b, blocks) < end; ++b) {
      const bool is_last = p.begin(b, blocks) < begin;  // the block began with another tile
      sum += p.partials[static_cast<int64_t>(2 * b + is_last) * VALUES + at];
    }
    const int lane = at % LANES, v = at / LANES % 4, m = at / LANES / 4 % MT;
    const int i = at / LANES / 4 / MT % WARP_BLOCKS, warp = at / LANES / 4 / MT / WARP_BLOCKS;
    const Target<MT> target(p, tile, warp, lane, i, m, v);
    store_value(p, sum, target.row, target.column);
  }
}

}  // namespace

const char* reduce_splits(const float* partials, int splits, int64_t rows, int64_t N, const float* row_scales,
                          const float* bias, void* y, Element type, void* stream) {
  if (rows == 0 || N == 0) return nullptr;
  launch(add_splits, grid_size(ceil_div(rows * N, THREADS), MOST_BLOCKS), THREADS, 0, stream, partials, splits, rows, N,
         row_scales, bias, y, type);
  return launch_error();
}

void add_parts(const GemmProblem& p, int row_fragments, unsigned blocks, void* stream) {
  const dim3 grid(static_cast<unsigned>(p.row_tiles * p.column_tiles), static_cast<unsigned>(2 * row_fragments));
  launch(row_fragments == 4 ? add_tiles<4> : add_tiles<8>, grid, GEMM_THREADS, 0, stream, p, blocks);
}

}  // namespace torchcoinfer::cuda
