// Around the products by wgmma: x as they read it, how they are cut, the sums of shared tiles.

#include "cuda/fast_hopper.h"

#include "cuda/fast_dense.cuh"
#include "cuda/hopper.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;

// --- x
//
// A stage's x is one piece of memory: the columns 0 .. 63 of a quad for all rows of a tile as swizzled rows, then 64 ..
// 127. In a tile of 32 columns chunk j holds the columns 8t + 2j and the next for t = 0 .. 3: wgmma's column 2t of its
// 16 columns, or 2t + 8, is then what lane t of the weight has.
//
//   columns of a tile | 0 1 | 2 3 | 4 5 | 6 7 | 8 9 | 10 11 | ..      chunk 0 | 0 1 | 8 9 | 16 17 | 24 25 |

constexpr int CHUNKS = SWIZZLED_ROW_BYTES / LANE_BYTES;

// Columns k and k + 1 of a row, zeros beyond K.
__device__ __forceinline__ uint32_t load_pair(const uint16_t* row, int64_t k, int64_t K, bool pairs) {
  if (pairs && k + 1 < K) return __ldg(reinterpret_cast<const uint32_t*>(row + k));
  const uint32_t first = k < K ? row[k] : 0, second = k + 1 < K ? row[k + 1] : 0;
  return first | second << 16;
}

// A thread a chunk of the result. pairs: rows begin at multiples of 4 bytes.
__global__ void __launch_bounds__(THREADS)
    arrange(const uint16_t* x, int64_t rows, int64_t stride, int64_t K, int quads, int tile_rows, int64_t count,
            bool pairs, uint4* out) {
  admit_kernel_after();
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; at < count; at += step) {
    const int64_t line = at / CHUNKS, half = line / tile_rows, part = half / 2;
    const int of_tile = static_cast<int>(line % tile_rows), chunk = static_cast<int>(at % CHUNKS) ^ of_tile % 8;
    const int64_t row = part / quads * tile_rows + of_tile;
    const int64_t k = part % quads * QUAD_K + half % 2 * (QUAD_K / 2) + chunk / 4 * TILE_K + chunk % 4 * 2;
    uint32_t words[4] = {0, 0, 0, 0};
    if (row < rows)
#pragma unroll
      for (int t = 0; t < 4; ++t) words[t] = load_pair(x + row * stride, k + 8 * t, K, pairs);
    out[at] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

int64_t x_bytes(const HopperCut& cut) {
  return int64_t{2} * cut.row_tiles * cut.tile_rows * cut.quads * QUAD_K;
}

// --- sums of tiles that several thread blocks share, in the blocks' order

// A thread block: a part of one tile.
__global__ void __launch_bounds__(THREADS) add_parts(HopperProblem p) {
  await_kernel_before();
  const HopperCut& cut = p.cut;
  const int tile = static_cast<int>(blockIdx.x), begin = tile * cut.quads, end = begin + cut.quads;
  const int sums = cut.tile_rows / 2;
  auto block = static_cast<unsigned>(static_cast<int64_t>(tile) * cut.blocks / cut.tiles());
  while (cut.begin(block + 1) <= begin) ++block;
  if (cut.begin(block) <= begin && cut.begin(block + 1) >= end) return;  // one block had it all
  for (int at = blockIdx.y * THREADS + threadIdx.x; at < cut.tile_values(); at += gridDim.y * THREADS) {
    const int lane = at % LANES, v = at / LANES % sums, of_warps = at / LANES / sums;
    const int64_t row = tile % cut.row_tiles * cut.tile_rows + v / 4 * 8 + 2 * (lane % 4) + v % 2;
    const int64_t column = tile / cut.row_tiles * HOPPER_COLUMNS + of_warps * BLOCK_N + lane / 4 + v / 2 % 2 * 8;
    if (row >= p.rows || column >= p.w.N) continue;
    float sum = p.bias ? p.bias[column] : 0.f;
    for (unsigned b = block; b < cut.blocks && cut.begin(b) < end; ++b) {
      const bool is_last = cut.begin(b) < begin;  // the block began with another tile
      sum += p.partials[static_cast<int64_t>(2 * b + is_last) * cut.tile_values() + at];
    }
    store_element(sum, p.y, p.type, row * p.w.N + column);
  }
}

// --- how a product is cut

// Reckoned for an H100, not measured: a multiprocessor multiplies 16 columns of a tile of 256 x 128 in 256 clocks and takes
// 24 bytes a clock from L2; each of its quarters issues an instruction a clock, two warps' 620 a step (W4, disassembly).
constexpr int64_t L2_BYTES = 24;        // a clock
constexpr int64_t STEP_ISSUES = 1240;   // of a quarter, whatever the rows
constexpr int64_t SECOND_KERNEL = 3000;  // clocks
constexpr int64_t LEAST_STEPS = 3;       // of a thread block

int64_t step_clocks(const DenseMatrix& w, int tile_rows) {
  const int64_t products = int64_t{16} * tile_rows;
  const int64_t bytes = tile_rows * QUAD_K * 2 + HOPPER_COLUMNS * QUAD_K * w.bits / 8;
  const int64_t reads = bytes / L2_BYTES;
  const int64_t most = products > reads ? products : reads;
  return most > STEP_ISSUES ? most : STEP_ISSUES;
}

HopperCut cut_of(const DenseMatrix& w, int64_t rows, int tile_rows) {
  HopperCut cut{};
  cut.tile_rows = tile_rows;
  cut.quads = static_cast<int>(ceil_div(w.K, QUAD_K));
  cut.row_tiles = static_cast<int>(ceil_div(rows, tile_rows));
  cut.column_tiles = static_cast<int>(ceil_div(w.N, HOPPER_COLUMNS));
  return cut;
}

int64_t clocks(const HopperCut& cut, const DenseMatrix& w) {
  const int64_t blocks = cut.blocks, tiles = cut.tiles(), step = step_clocks(w, cut.tile_rows);
  if (cut.whole) return ceil_div(tiles, blocks) * cut.quads * step;
  const int64_t parts = blocks % tiles ? 2 : 1;  // of a thread block: written, and read again
  return ceil_div(tiles * cut.quads, blocks) * step + SECOND_KERNEL + 2 * parts * cut.tile_values() * 4 / L2_BYTES;
}

// Whole tiles, every tile in so many parts, or equal parts of all: what is done first.
HopperCut cut_for(const DenseMatrix& w, int64_t rows) {
  const int64_t processors = processor_count();
  HopperCut best{};
  int64_t least = INT64_MAX;
  const auto consider = [&](HopperCut cut, int64_t blocks, bool whole) {
    cut.blocks = static_cast<unsigned>(blocks), cut.whole = whole;
    const int64_t needed = clocks(cut, w);
    if (needed < least) least = needed, best = cut;
  };
  for (const int tile_rows : {128, 64}) {
    const HopperCut cut = cut_of(w, rows, tile_rows);
    const int64_t tiles = cut.tiles(), most = grid_size(ceil_div(tiles * cut.quads, LEAST_STEPS), processors);
    consider(cut, tiles < processors ? tiles : processors, true);
    if (most / tiles > 1) consider(cut, most / tiles * tiles, false);
    if (most > 1) consider(cut, most, false);
  }
  return best;
}

int64_t partial_count(const HopperCut& cut) {
  return cut.whole ? 0 : int64_t{2} * cut.blocks * cut.tile_values();
}

}  // namespace

bool hopper_serves() {
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return false;
  if (major != 9) return false;
  static const bool is_built = hopper_is_built();  // the same for every Hopper
  return is_built;
}

int64_t hopper_scratch(const DenseMatrix& w, int64_t rows) {
  const HopperCut cut = cut_for(w, rows);
  return x_bytes(cut) / static_cast<int64_t>(sizeof(float)) + partial_count(cut);
}

const char* hopper_linear(const DenseMatrix& w, const void* x, Element type, int64_t x_columns, int64_t rows,
                          const float* bias, void* y, float* scratch, void* stream) {
  if (rows == 0 || w.N == 0) return nullptr;
  HopperProblem p{};
  p.w = w, p.rows = rows, p.bias = bias, p.y = y, p.type = type, p.cut = cut_for(w, rows);
  p.x = reinterpret_cast<const unsigned char*>(scratch);
  p.partials = scratch + x_bytes(p.cut) / static_cast<int64_t>(sizeof(float));
  const int64_t chunks = x_bytes(p.cut) / LANE_BYTES;
  const bool pairs = x_columns % 2 == 0 && reinterpret_cast<uintptr_t>(x) % 4 == 0;
  launch(arrange, grid_size(ceil_div(chunks, THREADS), MOST_BLOCKS), THREADS, 0, stream, static_cast<const uint16_t*>(x),
         rows, x_columns, w.K, p.cut.quads, p.cut.tile_rows, chunks, pairs, reinterpret_cast<uint4*>(scratch));
  const auto run = w.bits == 2   ? run_hopper<2>
                   : w.bits == 3 ? run_hopper<3>
                   : w.bits == 4 ? run_hopper<4>
                   : w.bits == 5 ? run_hopper<5>
                   : w.bits == 6 ? run_hopper<6>
                                 : run_hopper<8>;
  run(p, stream);
  if (!p.cut.whole) {
    const dim3 grid(static_cast<unsigned>(p.cut.tiles()), static_cast<unsigned>(p.cut.tile_rows / 8));
    launch_early(add_parts, grid, THREADS, 0, stream, p);
  }
  return launch_error();
}

}  // namespace torchcoinfer::cuda
