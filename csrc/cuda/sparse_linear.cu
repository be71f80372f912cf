// Sparse linear layers, 2:4 and bitmap, float and quantized survivors: plain, correct, the truth for faster kernels.
//
// A thread block computes one n-block for up to ROWS rows, tile after tile: its threads spread the tile's survivors into
// 16 x 32 weights in shared memory, zeros elsewhere, then multiply. Team j of 16 threads takes columns 2j and 2j + 1;
// the teams add up at the end.

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int TEAMS = 16;
constexpr int THREADS = TEAMS * BLOCK_N;
constexpr int ROWS = 8;
constexpr int TILE_SURVIVORS = TILE_CHUNKS * CHUNK;
constexpr int PER_THREAD = BLOCK_N * TILE_K / THREADS;
constexpr int TEAM_COLUMNS = TILE_K / TEAMS;
static_assert(ROWS <= TEAMS, "team m writes row m");

// Where weight (n, k) of a 2:4 tile lies among its survivors: slot 0 or 1, or -1.
__device__ int paired_slot(const SparseMatrix& w, int64_t block, int64_t tiles, int64_t t, int n, int k) {
  const uint8_t* index = w.index + block * tiles * INDEX_BYTES;
  const int g = k / GROUP_K;
  int nibble;
  if (w.layout == DEVICE_LAYOUT) {
    const Bit at = device_index_bit(tiles, t, n, g);
    nibble = index[at.byte] >> at.shift & 15;
  } else {
    nibble = index[t * INDEX_BYTES + 8 * g + n / 2] >> 4 * (n % 2) & 15;
  }
  return k % GROUP_K == (nibble & 3) ? 0 : k % GROUP_K == nibble >> 2 ? 1 : -1;
}

__device__ float survivor_value(const SparseMatrix& w, const Grid& grid, int64_t survivor) {
  if (!w.bits) return load_element(w.values, w.value_type, survivor);
  const auto* chunk = static_cast<const uint8_t*>(w.values) + survivor / CHUNK * chunk_bytes(w.bits);
  return grid.scale * static_cast<float>(chunk_code(chunk, w.bits, static_cast<int>(survivor % CHUNK)) - grid.zero);
}

__device__ float paired_weight(const SparseMatrix& w, const Grid& grid, int64_t block, int64_t tiles, int64_t t, int n,
                               int k) {
  const int slot = paired_slot(w, block, tiles, t, n, k), g = k / GROUP_K;
  if (slot < 0) return 0.f;
  const int64_t first = (block * tiles + t) * TILE_SURVIVORS;
  if (w.layout != DEVICE_LAYOUT) return survivor_value(w, grid, first + g * PAIRED_SURVIVORS + 2 * n + slot);
  if (!w.bits) return load_element(w.values, w.value_type, first + device_survivor_element(n, g, slot));
  const auto* values = static_cast<const uint8_t*>(w.values) + block * tiles * TILE_CHUNKS * chunk_bytes(w.bits);
  return grid.scale * static_cast<float>(device_survivor(values, w.bits, tiles, t, n, g, slot) - grid.zero);
}

// Survivors of a bitmap block, tile by tile.
struct Stream {
  int64_t first, last, seen;

  __device__ Stream(const SparseMatrix& w, int64_t block) : first(0), last(0), seen(0) {
    if (w.paired) return;
    first = static_cast<int64_t>(w.offsets[block]) * CHUNK;
    last = static_cast<int64_t>(w.offsets[block + 1]) * CHUNK;
    if (first < 0 || last > w.chunks * CHUNK) last = first;  // never read beyond the values
  }
  // The weight of (n, k) in the tile whose masks are given.
  __device__ float weight(const SparseMatrix& w, const Grid& grid, const uint64_t* masks, int n, int k) const {
    const int g = k / GROUP_K, at = GROUP_K * n + k % GROUP_K;
    if (!(masks[g] >> at & 1)) return 0.f;
    int64_t survivor = first + seen + __popcll(masks[g] & ((uint64_t{1} << at) - 1));
    for (int i = 0; i < g; ++i) survivor += __popcll(masks[i]);
    return survivor < last ? survivor_value(w, grid, survivor) : 0.f;
  }
  __device__ void pass(const uint64_t* masks) {
    for (int i = 0; i < TILE_GROUPS; ++i) seen += __popcll(masks[i]);
  }
};

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

}  // namespace

const char* sparse_linear(const SparseMatrix& w, const float* values, int64_t rows, const float* row_scales,
                          const float* bias, void* y, Element type, void* stream) {
  if (rows == 0 || w.N == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>(ceil_div(w.N, BLOCK_N)), grid_size(ceil_div(rows, ROWS), 65535));
  launch(multiply, grid, THREADS, 0, stream, w, values, rows, row_scales, bias, y, type);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
