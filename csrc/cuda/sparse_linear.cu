// Sparse linear layers, 2:4 and bitmap, float and quantized survivors: plain, correct, the truth for faster kernels.
//
// A thread block computes one n-block for up to ROWS rows, tile after tile: its threads spread the tile's survivors into
// 16 x 32 weights in shared memory, zeros elsewhere, then multiply. Team j of 16 threads takes columns 2j and 2j + 1;
// the teams add up at the end.

#include "cuda/sparse_element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int TEAMS = 16;
constexpr int THREADS = TEAMS * BLOCK_N;
constexpr int ROWS = 8;
constexpr int PER_THREAD = BLOCK_N * TILE_K / THREADS;
constexpr int TEAM_COLUMNS = TILE_K / TEAMS;
constexpr int PAIRED_THREADS = BLOCK_N * TILE_GROUPS;
static_assert(ROWS <= TEAMS, "team m writes row m");

__global__ void __launch_bounds__(THREADS)
    multiply(SparseMatrix w, const float* values, int64_t rows, const float* row_scales, const float* bias, void* y,
             Element type) {
  __shared__ float weights[BLOCK_N][TILE_K + 1];
  __shared__ float partial[TEAMS][ROWS][BLOCK_N];
  const int team = threadIdx.x / BLOCK_N, n = threadIdx.x % BLOCK_N;
  const int64_t tiles = ceil_div(w.K, TILE_K), stride = tiles * TILE_K, block = blockIdx.x;
  const int64_t group_tiles = w.group_size ? w.group_size / TILE_K : tiles;
  const int64_t step = static_cast<int64_t>(gridDim.y) * ROWS;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * ROWS; row < rows; row += step) {
    const int count = static_cast<int>(rows - row < ROWS ? rows - row : ROWS);
    float sums[ROWS] = {};
    Stream stream(w, block);
    for (int64_t t = 0; t < tiles; ++t) {
      const uint64_t* masks = w.paired ? nullptr : w.masks + (block * tiles + t) * TILE_GROUPS;
      for (int i = 0; i < PER_THREAD; ++i) {
        const int of_row = (threadIdx.x + i * THREADS) / TILE_K, k = (threadIdx.x + i * THREADS) % TILE_K;
        const Grid grid = w.bits ? load_grid(w, block, t / group_tiles, of_row) : Grid{1.f, 0};
        weights[of_row][k] = w.paired ? paired_weight(w, grid, block, tiles, t, of_row, k)
                                      : stream.weight(w, grid, masks, of_row, k);
      }
      if (!w.paired) stream.pass(masks);
      __syncthreads();
      for (int i = 0; i < TEAM_COLUMNS; ++i) {
        const int k = team * TEAM_COLUMNS + i;
        for (int m = 0; m < ROWS; ++m)
          if (m < count) sums[m] += weights[n][k] * values[(row + m) * stride + t * TILE_K + k];
      }
      __syncthreads();  // weights are written again
    }
    for (int m = 0; m < ROWS; ++m) partial[team][m][n] = sums[m];
    __syncthreads();
    const int64_t column = block * BLOCK_N + n;
    if (team < count && column < w.N) {
      float sum = 0.f;
      for (int other = 0; other < TEAMS; ++other) sum += partial[other][team][n];
      if (row_scales) sum *= row_scales[row + team];
      if (bias) sum += bias[column];
      store_element(sum, y, type, (row + team) * w.N + column);
    }
    __syncthreads();  // partial is written again for the next rows
  }
}

// The weight itself, 2:4: a thread the four columns of a group in one row.
__global__ void __launch_bounds__(PAIRED_THREADS) write_paired(SparseMatrix w, void* out, Element type) {
  const int n = threadIdx.x / TILE_GROUPS, g = threadIdx.x % TILE_GROUPS;
  const int64_t tiles = ceil_div(w.K, TILE_K), all = ceil_div(w.N, BLOCK_N) * tiles;
  for (int64_t at = blockIdx.x; at < all; at += gridDim.x) {
    const int64_t block = at / tiles, t = at % tiles, row = block * BLOCK_N + n, k = t * TILE_K + g * GROUP_K;
    if (row >= w.N) continue;
    const Grid grid = w.bits ? load_grid(w, block, w.group_size ? t * TILE_K / w.group_size : 0, n) : Grid{1.f, 0};
    const int nibble = paired_nibble(w, block, tiles, t, n, g);
    const float first = paired_survivor(w, grid, block, tiles, t, n, g, 0);
    const float second = paired_survivor(w, grid, block, tiles, t, n, g, 1);
    for (int i = 0; i < GROUP_K && k + i < w.K; ++i)
      store_element(i == (nibble & 3) ? first : i == nibble >> 2 ? second : 0.f, out, type, row * w.K + k + i);
  }
}

// The same for bitmap, a thread block an n-block.
__global__ void __launch_bounds__(THREADS) write_bitmap(SparseMatrix w, void* out, Element type) {
  const int64_t tiles = ceil_div(w.K, TILE_K), block = blockIdx.x;
  Stream stream(w, block);
  for (int64_t t = 0; t < tiles; ++t) {
    const uint64_t* masks = w.masks + (block * tiles + t) * TILE_GROUPS;
    for (int i = 0; i < PER_THREAD; ++i) {
      const int n = (threadIdx.x + i * THREADS) / TILE_K;
      const int64_t row = block * BLOCK_N + n, k = t * TILE_K + (threadIdx.x + i * THREADS) % TILE_K;
      if (row >= w.N || k >= w.K) continue;
      const Grid grid = w.bits ? load_grid(w, block, w.group_size ? k / w.group_size : 0, n) : Grid{1.f, 0};
      store_element(stream.weight(w, grid, masks, n, static_cast<int>(k % TILE_K)), out, type, row * w.K + k);
    }
    stream.pass(masks);
  }
}

}  // namespace

const char* sparse_dequantize(const SparseMatrix& w, void* out, Element type, void* stream) {
  const int64_t blocks = ceil_div(w.N, BLOCK_N), all = blocks * ceil_div(w.K, TILE_K);
  if (all == 0) return nullptr;
  if (w.paired)
    launch(write_paired, grid_size(all, MOST_BLOCKS), PAIRED_THREADS, 0, stream, w, out, type);
  else
    launch(write_bitmap, static_cast<unsigned>(blocks), THREADS, 0, stream, w, out, type);
  return launch_error();
}

const char* sparse_linear(const SparseMatrix& w, const float* values, int64_t rows, const float* row_scales,
                          const float* bias, void* y, Element type, void* stream) {
  if (rows == 0 || w.N == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>(ceil_div(w.N, BLOCK_N)), grid_size(ceil_div(rows, ROWS), 65535));
  launch(multiply, grid, THREADS, 0, stream, w, values, rows, row_scales, bias, y, type);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
