// W{2,3,4,5,6,8}A16 for up to 16 rows of x: the weight streams once from memory, everything else hides behind it.
//
// A warp takes two n-blocks (32 columns of y) and every `down`-th quad of K; the warps of a thread block are `across`
// such pairs times `down` parts of K, whose sums meet in shared memory. x is read where it is used: neighbors across
// find it in L1.
//
//            K: quad 0   1   2   3   4   5  ..
//   n-blocks 0,1  w0  w1  w2  w3  w0  w1  ..      across = 2, down = 4: eight warps
//   n-blocks 2,3  w4  w5  w6  w7  w4  w5  ..

#include "cuda/fast_dense.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int LEAST_QUADS = 4;  // of a warp, where blocks split K
constexpr int FEW_ROWS = 4;     // whose x is small beside the weight

// Warps of a block, and of a multiprocessor: as many as its registers hold without spilling. Each has WARP_BLOCKS quads
// under way, 512 bits of bytes, so that 32 KiB and more are: latency times bandwidth is 18 KB (H100).
__host__ __device__ constexpr int most_warps(int bits, int tiles) {
  return bits < 6 && tiles == 1 ? 16 : bits < 6 || tiles == 1 ? 12 : 8;
}

struct GemvShape {
  int across, down, splits;
};

template <int BITS>
struct Stage {
  QuadWords<BITS> quad[WARP_BLOCKS];
  QuadGrid grid[WARP_BLOCKS];
};

// What a lane reads of its two n-blocks, and of x.
template <int BITS>
struct Source {
  const uint8_t* codes[WARP_BLOCKS];
  int64_t blocks[WARP_BLOCKS];
  GridSteps steps;
  int tiles;

  __device__ __forceinline__ Source(const DenseMatrix& w, int64_t first_block) {
    const int64_t last = ceil_div(w.N, BLOCK_N) - 1;
    steps = grid_steps(w);
    tiles = static_cast<int>(ceil_div(w.K, TILE_K));
#pragma unroll
    for (int i = 0; i < WARP_BLOCKS; ++i) {
      blocks[i] = first_block + i < last ? first_block + i : last;
      codes[i] = w.packed + blocks[i] * tiles * tile_bytes(BITS);
    }
  }
};

template <int BITS>
__device__ __forceinline__ void load_stage(Stage<BITS>& stage, const DenseMatrix& w, const Source<BITS>& source, int q,
                                           int lane) {
  const int left = source.tiles - q * QUAD;
#pragma unroll
  for (int i = 0; i < WARP_BLOCKS; ++i) {
    const uint8_t* place = source.codes[i] + q * QUAD_BYTES<BITS>;
    if (left >= QUAD)
      load_quad<BITS, true>(stage.quad[i], place, lane);
    else
      load_rest<BITS>(stage.quad[i], place, left, lane);
    load_quad_grid(stage.grid[i], w, source.steps, source.blocks[i], q, lane);
  }
}

// Sums of the `down` warps beside each other, in their order; thread by thread one value of y or of the partials.
template <int MT>
__device__ __forceinline__ void finish(const Sums<MT> (&sums)[WARP_BLOCKS], GemvShape shape, const DenseMatrix& w,
                                       int64_t rows, const float* bias, void* y, Element type, float* partials) {
  constexpr int OF_WARP = WARP_BLOCKS * MT * 4 * LANES;
  auto* shared = static_cast<float*>(dynamic_shared());
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
  for (int i = 0; i < WARP_BLOCKS; ++i)
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int v = 0; v < 4; ++v) shared[warp * OF_WARP + ((i * MT + m) * 4 + v) * LANES + lane] = sums[i].total[m][v];
  __syncthreads();
  const int columns = shape.across * WARP_COLUMNS;
  for (int at = threadIdx.x; at < columns * MT * 8; at += blockDim.x) {
    const int n = at % columns, m = at / columns, pair = n / WARP_COLUMNS, r = n % BLOCK_N;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * columns + n;
    if (m >= rows || column >= w.N) continue;
    const int i = n % WARP_COLUMNS / BLOCK_N, v = r / 8 * 2 + m % 2, of_lane = r % 8 * 4 + m % 8 / 2;
    const float* place = shared + pair * shape.down * OF_WARP + ((i * MT + m / 8) * 4 + v) * LANES + of_lane;
    float sum = 0.f;
    for (int part = 0; part < shape.down; ++part) sum += place[part * OF_WARP];
    if (partials)
      partials[(blockIdx.y * rows + m) * w.N + column] = sum;
    else
      store_element(bias ? sum + bias[column] : sum, y, type, m * w.N + column);
  }
}

// x: [rows, x_columns], x_columns a multiple of 8 and at least K, of addresses that are multiples of 16.
template <typename T, int BITS, int MT>
__global__ void __launch_bounds__(most_warps(BITS, MT) * WARP)
    gemv(DenseMatrix w, GemvShape shape, const T* x, int64_t x_columns, int64_t rows, const float* bias, void* y,
         Element type, float* partials) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, split = static_cast<int>(blockIdx.y);
  const int64_t first_block = (static_cast<int64_t>(blockIdx.x) * shape.across + warp / shape.down) * WARP_BLOCKS;
  const Source<BITS> source(w, first_block);
  const int quads = (source.tiles + QUAD - 1) / QUAD, end = quads * (split + 1) / shape.splits;
  const T* of_lane[MT];  // where the lane's columns of x begin
  int columns[MT];       // and how many follow; none in rows that are not there
#pragma unroll
  for (int m = 0; m < MT; ++m) {
    const int64_t row = 8 * m + lane / 4;
    of_lane[m] = x + row * x_columns + 8 * (lane % 4);
    columns[m] = row < rows ? static_cast<int>(x_columns) - 8 * (lane % 4) : 0;
  }
  int q = quads * split / shape.splits + warp % shape.down;
  Sums<MT> sums[WARP_BLOCKS];
#pragma unroll
  for (int i = 0; i < WARP_BLOCKS; ++i) clear(sums[i]);
  Stage<BITS> stage, next;
  if (q < end) load_stage(stage, w, source, q, lane);
#pragma unroll 1
  for (; q < end; q += shape.down) {
    uint4 values[QUAD][MT];
#pragma unroll
    for (int u = 0; u < QUAD; ++u)
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        const int column = q * QUAD_K + u * TILE_K;
        values[u][m] = load_values(of_lane[m] + column, column < columns[m]);
      }
    if (q + shape.down < end) load_stage(next, w, source, q + shape.down, lane);
    const auto of_tile = [&values](int u, int m) { return values[u][m]; };
    multiply_quad<T, BITS, MT>(sums, stage.quad, stage.grid, w, of_tile, lane);
    stage = next;
  }
  finish<MT>(sums, shape, w, rows, bias, y, type, partials);
}

GemvShape gemv_shape(const DenseMatrix& w, int64_t rows, int64_t processors) {
  const int64_t pairs = ceil_div(ceil_div(w.N, BLOCK_N), WARP_BLOCKS), quads = ceil_div(ceil_div(w.K, TILE_K), QUAD);
  const int64_t most = most_warps(w.bits, rows > 8 ? 2 : 1);
  GemvShape shape{1, 1, 1};
  if (rows > FEW_ROWS && pairs >= 2 * processors) shape.across = 2;  // x is read half as often
  const int64_t blocks = ceil_div(pairs, shape.across), on_one = ceil_div(blocks, processors);
  const int64_t warps = on_one * 4 < most ? most / on_one : 4;
  shape.down = static_cast<int>(warps / shape.across < quads ? warps / shape.across : quads);
  shape.splits = static_cast<int>(split_count(blocks, quads, LEAST_QUADS * shape.down, processors));
  return shape;
}

template <typename T, int BITS>
void run(const DenseMatrix& w, GemvShape shape, const void* x, int64_t x_columns, int64_t rows, const float* bias,
         void* y, Element type, float* partials, void* stream) {
  const int64_t pairs = ceil_div(ceil_div(w.N, BLOCK_N), WARP_BLOCKS);
  const dim3 grid(static_cast<unsigned>(ceil_div(pairs, shape.across)), static_cast<unsigned>(shape.splits));
  const int warps = shape.across * shape.down, tiles = rows > 8 ? 2 : 1;
  const size_t bytes = static_cast<size_t>(warps) * WARP_BLOCKS * tiles * 4 * LANES * sizeof(float);
  launch(tiles == 2 ? gemv<T, BITS, 2> : gemv<T, BITS, 1>, grid, warps * WARP, bytes, stream, w, shape,
         static_cast<const T*>(x), x_columns, rows, bias, y, type, partials);
}

template <typename T>
void run_bits(const DenseMatrix& w, GemvShape shape, const void* x, int64_t x_columns, int64_t rows, const float* bias,
              void* y, Element type, float* partials, void* stream) {
  const auto kernel = w.bits == 2   ? run<T, 2>
                      : w.bits == 3 ? run<T, 3>
                      : w.bits == 4 ? run<T, 4>
                      : w.bits == 5 ? run<T, 5>
                      : w.bits == 6 ? run<T, 6>
                                    : run<T, 8>;
  kernel(w, shape, x, x_columns, rows, bias, y, type, partials, stream);
}

}  // namespace

int64_t gemv_scratch(const DenseMatrix& w, int64_t rows) {
  const int splits = gemv_shape(w, rows, processor_count()).splits;
  return splits > 1 ? splits * rows * w.N : 0;
}

const char* gemv_linear(const DenseMatrix& w, const void* x, Element type, int64_t x_columns, int64_t rows,
                        const float* bias, void* y, float* scratch, void* stream) {
  if (rows == 0 || w.N == 0) return nullptr;
  const GemvShape shape = gemv_shape(w, rows, processor_count());
  float* partials = shape.splits > 1 ? scratch : nullptr;
  const auto kernel = type == Element::float16 ? run_bits<__half> : run_bits<__nv_bfloat16>;
  kernel(w, shape, x, x_columns, rows, bias, y, type, partials, stream);
  if (const char* error = launch_error()) return error;
  return partials ? reduce_splits(partials, shape.splits, rows, w.N, nullptr, bias, y, type, stream) : nullptr;
}

}  // namespace torchcoinfer::cuda
