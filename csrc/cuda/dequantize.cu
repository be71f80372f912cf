// The weight that packed buffers stand for. One thread block a tile, one thread a code.

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int TILE_THREADS = BLOCK_N * TILE_K;

__global__ void dequantize_tiles(DenseMatrix w, void* out, Element type) {
  const int64_t tiles = ceil_div(w.K, TILE_K), all = ceil_div(w.N, BLOCK_N) * tiles;
  const int n = threadIdx.x / TILE_K, k = threadIdx.x % TILE_K;  // neighbors write neighboring k
  for (int64_t tile = blockIdx.x; tile < all; tile += gridDim.x) {
    const int64_t block = tile / tiles, row = block * BLOCK_N + n, column = tile % tiles * TILE_K + k;
    if (row >= w.N || column >= w.K) continue;
    const Grid grid = load_grid(w, block, w.group_size ? column / w.group_size : 0, n);
    const int code = dense_code(w, block, tiles, tile % tiles, n, k);
    store_element(grid.scale * static_cast<float>(code - grid.zero), out, type, row * w.K + column);
  }
}

}  // namespace

const char* dequantize(const DenseMatrix& w, void* out, Element type, void* stream) {
  const int64_t tiles = ceil_div(w.N, BLOCK_N) * ceil_div(w.K, TILE_K);
  if (tiles == 0) return nullptr;
  launch(dequantize_tiles, grid_size(tiles, MOST_BLOCKS), TILE_THREADS, 0, stream, w, out, type);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
