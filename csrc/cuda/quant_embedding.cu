// Rows of a packed table. One thread block an index, neighbors write neighboring columns.

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 128;

__global__ void embed_rows(DenseMatrix w, const void* indices, bool wide, int64_t count, void* out, Element type) {
  const int64_t tiles = ceil_div(w.K, TILE_K);
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    const int64_t row = wide ? static_cast<const int64_t*>(indices)[i] : static_cast<const int32_t*>(indices)[i];
    const bool inside = row >= 0 && row < w.N;
    const int64_t block = row / BLOCK_N;
    const int n = static_cast<int>(row % BLOCK_N);
    for (int64_t k = threadIdx.x; k < w.K; k += THREADS) {
      float value = __int_as_float(0x7fc00000);  // an index that no row answers to must not pass for one
      if (inside) {
        const Grid grid = load_grid(w, block, w.group_size ? k / w.group_size : 0, n);
        const int code = dense_code(w, block, tiles, k / TILE_K, n, static_cast<int>(k % TILE_K));
        value = grid.scale * static_cast<float>(code - grid.zero);
      }
      store_element(value, out, type, i * w.K + k);
    }
  }
}

}  // namespace

const char* embed(const DenseMatrix& w, const void* indices, bool wide_indices, int64_t count, void* out, Element type,
                  void* stream) {
  if (count == 0 || w.K == 0) return nullptr;
  launch(embed_rows, grid_size(count, MOST_BLOCKS), THREADS, 0, stream, w, indices, wide_indices, count, out, type);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
