// The frame of the fast GEMMs: y = x W^T for more rows than a GEMV serves, whatever the operands of mma are (`Math`).
//
// A thread block of eight warps computes tiles of 64 or 128 rows of x by 128 columns of y (8 n-blocks). Each step is one
// quad of K: the tile's x and packed codes arrive in a ring of stages in shared memory, `stages` - 1 steps ahead.
//
// The steps of all tiles, tile after tile, are dealt to the thread blocks in equal parts, so that no processor idles
// whatever the shape. A tile that falls to several blocks is summed up by a second kernel, in their order:
//
//   steps  |  tile 0  |  tile 1  |  tile 2  |
//   blocks |   0   |   1   |   2   |   3   |        block 1 ends tile 0 and begins tile 1: two partial sums
//
// Math: BITS, MT (8-row tiles of a warp), ROW_BYTES (x of a row and quad), SUM_BYTES (of a stage, for column sums),
// swizzled(row, chunk), fetch_sums(...), State with clear(), multiply(...), value(i, m, v).

#pragma once

#include "cuda/fast_dense.cuh"

namespace torchcoinfer::cuda {

constexpr int N_WARPS = 4, M_WARPS = 2, GEMM_THREADS = N_WARPS * M_WARPS * WARP;
constexpr int TILE_BLOCKS = N_WARPS * WARP_BLOCKS, TILE_COLUMNS = TILE_BLOCKS * BLOCK_N;
constexpr int MOST_STAGES = 4;
constexpr int64_t LEAST_STEPS = 4;  // of a thread block: fewer would mostly be start and end

struct GemmProblem {
  DenseMatrix w;
  const unsigned char* x;  // [rows, row_bytes], row_bytes a multiple of 16, zeros beyond K
  int64_t row_bytes, rows;
  const int32_t* sums;  // of x over each group, [groups of at most a quad, sum_rows]; int8 only
  int64_t sum_rows;
  const float* row_scales;  // [rows] or nullptr
  const float* bias;        // [N] or nullptr
  void* y;
  Element type;
  float* partials;  // [blocks, 2, BM * 128]
  int quads, row_tiles, column_tiles, stages;

  __host__ __device__ int steps() const {
    return quads * row_tiles * column_tiles;
  }
  // First step of a thread block.
  __host__ __device__ int begin(unsigned block, unsigned blocks) const {
    return static_cast<int>(static_cast<int64_t>(steps()) * block / blocks);
  }
};

// Rows of a tile.
template <int MT>
constexpr int TILE_ROWS = M_WARPS * MT * 8;

template <typename Math>
struct Stage {
  static constexpr int ROWS = TILE_ROWS<Math::MT>;
  static constexpr int X_BYTES = ROWS * Math::ROW_BYTES;
  static constexpr int CODE_BYTES = TILE_BLOCKS * static_cast<int>(QUAD_BYTES<Math::BITS>);
  static constexpr int BYTES = X_BYTES + CODE_BYTES + Math::SUM_BYTES;
};

// Walks the steps ahead of the multiplication and starts the copies they need; divides once a tile only.
template <typename Math>
class Fetcher {
 public:
  __device__ __forceinline__ Fetcher(const GemmProblem& p, int step) : p_(p) {
    tiles_ = static_cast<int>(ceil_div(p.w.K, TILE_K));
    enter(step / p.quads);
    q_ = step % p.quads;
  }

  __device__ __forceinline__ void fetch(unsigned char* stage) {
    fetch_rows(stage);
    fetch_codes(stage + Stage<Math>::X_BYTES);
    if constexpr (Math::SUM_BYTES > 0)
      Math::fetch_sums(stage + Stage<Math>::X_BYTES + Stage<Math>::CODE_BYTES, p_, row_, q_);
    if (++q_ == p_.quads) {
      q_ = 0;
      enter(tile_ + 1);
    }
  }

 private:
  static constexpr int CHUNKS = Math::ROW_BYTES / LANE_BYTES;         // of a row of x
  static constexpr int ROWS_AT_ONCE = GEMM_THREADS / CHUNKS;
  static constexpr int OF_BLOCK = static_cast<int>(QUAD_BYTES<Math::BITS>) / LANE_BYTES;  // chunks of an n-block

  const GemmProblem& p_;
  int tiles_, tile_, q_, row_, block_;
  const unsigned char* x_;  // the thread's first chunk of the tile's x

  __device__ __forceinline__ void enter(int tile) {
    tile_ = tile;
    row_ = tile % p_.row_tiles * Stage<Math>::ROWS;
    block_ = tile / p_.row_tiles * TILE_BLOCKS;
    const int chunk = threadIdx.x % CHUNKS;
    x_ = p_.x + (row_ + static_cast<int>(threadIdx.x) / CHUNKS) * p_.row_bytes + chunk * LANE_BYTES;
  }

  __device__ __forceinline__ void fetch_rows(unsigned char* target) const {
    const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const int64_t byte = static_cast<int64_t>(q_) * Math::ROW_BYTES;
    const bool inside = byte + chunk * LANE_BYTES < p_.row_bytes;
#pragma unroll
    for (int r = 0; r < Stage<Math>::ROWS; r += ROWS_AT_ONCE) {
      const bool wanted = inside && row_ + r + first < p_.rows;
      copy_async(target + (r + first) * Math::ROW_BYTES + Math::swizzled(first, chunk) * LANE_BYTES,
                 wanted ? x_ + r * p_.row_bytes + byte : p_.x, wanted);
    }
  }

  __device__ __forceinline__ void fetch_codes(unsigned char* target) const {
    const int blocks = static_cast<int>(ceil_div(p_.w.N, BLOCK_N)) - block_, left = tiles_ - q_ * QUAD;
    const int chunks = left < QUAD ? left * (OF_BLOCK / QUAD) : OF_BLOCK;
    const int64_t of_block = tiles_ * tile_bytes(Math::BITS);
    const uint8_t* codes = p_.w.packed + block_ * of_block + q_ * QUAD_BYTES<Math::BITS>;
#pragma unroll
    for (int at = threadIdx.x; at < TILE_BLOCKS * OF_BLOCK; at += GEMM_THREADS) {
      const int i = at / OF_BLOCK, chunk = at % OF_BLOCK;
      const bool wanted = i < blocks && chunk < chunks;
      copy_async(target + at * LANE_BYTES, wanted ? codes + i * of_block + chunk * LANE_BYTES : p_.w.packed, wanted);
    }
  }
};

// A lane's words of the warp's n-blocks, of the `left` tiles from this quad on.
template <int BITS>
__device__ __forceinline__ void load_stage_codes(QuadWords<BITS> (&quad)[WARP_BLOCKS], const uint8_t* codes, int left,
                                                 int warp, int lane) {
#pragma unroll
  for (int i = 0; i < WARP_BLOCKS; ++i) {
    const uint8_t* of_block = codes + (warp % N_WARPS * WARP_BLOCKS + i) * QUAD_BYTES<BITS>;
    if (left >= QUAD)
      load_quad<BITS, false>(quad[i], of_block, lane);
    else
      load_rest<BITS>(quad[i], of_block, left, lane);
  }
}

// Until the oldest of the `stages` - 1 steps under way is there.
__device__ __forceinline__ void await_step(int stages) {
  if (stages == 4)
    wait_copies<2>();
  else if (stages == 3)
    wait_copies<1>();
  else
    wait_copies<0>();
}

// Where value v of the lane's accumulator (i, m) belongs.
template <int MT>
struct Target {
  int row, column;
  __device__ __forceinline__ Target(const GemmProblem& p, int tile, int warp, int lane, int i, int m, int v) {
    row = tile % p.row_tiles * TILE_ROWS<MT> + (warp / N_WARPS * MT + m) * 8 + 2 * (lane % 4) + v % 2;
    column = (tile / p.row_tiles * TILE_BLOCKS + warp % N_WARPS * WARP_BLOCKS + i) * BLOCK_N + lane / 4 + 8 * (v / 2);
  }
};

__device__ __forceinline__ void store_value(const GemmProblem& p, float value, int64_t row, int64_t column) {
  if (row >= p.rows || column >= p.w.N) return;
  if (p.row_scales) value *= p.row_scales[row];
  if (p.bias) value += p.bias[column];
  store_element(value, p.y, p.type, row * p.w.N + column);
}

// The sums of a tile, or of a part of its steps: then to `partials`, lane by lane.
template <typename Math>
__device__ __forceinline__ void store_tile(const GemmProblem& p, const typename Math::State& state, int tile,
                                           float* partials, int warp, int lane) {
#pragma unroll
  for (int i = 0; i < WARP_BLOCKS; ++i)
#pragma unroll
    for (int m = 0; m < Math::MT; ++m)
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const float value = state.value(i, m, v);
        if (partials) {
          partials[(((warp * WARP_BLOCKS + i) * Math::MT + m) * 4 + v) * LANES + lane] = value;
          continue;
        }
        const Target<Math::MT> target(p, tile, warp, lane, i, m, v);
        store_value(p, value, target.row, target.column);
      }
}

template <typename Math>
__device__ __forceinline__ void load_step_grid(QuadGrid (&grid)[WARP_BLOCKS], const GemmProblem& p, const GridSteps& steps,
                                               int tile, int q, int warp, int lane) {
  const int64_t blocks = ceil_div(p.w.N, BLOCK_N);
#pragma unroll
  for (int i = 0; i < WARP_BLOCKS; ++i) {
    const int64_t block = tile / p.row_tiles * TILE_BLOCKS + warp % N_WARPS * WARP_BLOCKS + i;
    load_quad_grid(grid[i], p.w, steps, block < blocks ? block : blocks - 1, q, lane);
  }
}

template <typename Math>
__device__ __forceinline__ void run_gemm(const GemmProblem& p) {
  auto* ring = static_cast<unsigned char*>(dynamic_shared());
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int begin = p.begin(blockIdx.x, gridDim.x), end = p.begin(blockIdx.x + 1, gridDim.x);
  Fetcher<Math> fetcher(p, begin);
  for (int i = 0; i + 1 < p.stages; ++i) {
    if (begin + i < end) fetcher.fetch(ring + i * Stage<Math>::BYTES);
    commit_copies();
  }
  typename Math::State state;
  state.clear();
  const GridSteps steps = grid_steps(p.w);
  int first = begin;  // of the steps that `state` sums up
  int slot = 0, tile = begin / p.quads, q = begin % p.quads;
#pragma unroll 1
  for (int step = begin; step < end; ++step) {
    QuadGrid grid[WARP_BLOCKS];
    load_step_grid<Math>(grid, p, steps, tile, q, warp, lane);  // lands while the copies are awaited and started
    await_step(p.stages);
    __syncthreads();  // everybody's copies are there, and the stage before this one has been read
    if (step + p.stages - 1 < end) fetcher.fetch(ring + (slot ? slot - 1 : p.stages - 1) * Stage<Math>::BYTES);
    commit_copies();
    if (tile % p.row_tiles * Stage<Math>::ROWS + warp / N_WARPS * Math::MT * 8 < p.rows)
      state.multiply(ring + slot * Stage<Math>::BYTES, grid, p, q, warp, lane);
    if (q + 1 == p.quads || step + 1 == end) {
      const bool whole = first == tile * p.quads && q + 1 == p.quads;
      const int64_t part = 2 * static_cast<int64_t>(blockIdx.x) + (first != begin);
      float* partials = p.partials + part * Stage<Math>::ROWS * TILE_COLUMNS;
      store_tile<Math>(p, state, tile, whole ? nullptr : partials, warp, lane);
      state.clear();
      first = step + 1;
    }
    slot = slot + 1 == p.stages ? 0 : slot + 1;
    if (++q == p.quads) q = 0, ++tile;
  }
}

// --- host

// Thread blocks: one a multiprocessor, if each has work for a while.
inline unsigned gemm_blocks(const GemmProblem& p) {
  return grid_size(ceil_div(p.steps(), LEAST_STEPS), processor_count());
}

inline bool shares_tiles(const GemmProblem& p) {
  return static_cast<unsigned>(p.row_tiles * p.column_tiles) % gemm_blocks(p) != 0;
}

// Tiles of 64 or 128 rows: the smaller, the less padding; the larger, the oftener a converted weight is used, here worth
// 32 rows a tile.
inline bool small_tiles(int64_t rows) {
  return ceil_div(rows, 64) * (64 + 32) < ceil_div(rows, 128) * (128 + 32);
}

// Sets what follows from the rest.
template <typename Math>
void set_geometry(GemmProblem& p) {
  p.quads = static_cast<int>(ceil_div(p.w.K, QUAD_K));
  p.row_tiles = static_cast<int>(ceil_div(p.rows, Stage<Math>::ROWS));
  p.column_tiles = static_cast<int>(ceil_div(p.w.N, TILE_COLUMNS));
  p.stages = static_cast<int>(grid_size(shared_bytes() / Stage<Math>::BYTES, MOST_STAGES));
}

template <typename Math>
int64_t partial_count(GemmProblem p) {
  set_geometry<Math>(p);
  return shares_tiles(p) ? int64_t{2} * gemm_blocks(p) * Stage<Math>::ROWS * TILE_COLUMNS : 0;
}

// Adds up the tiles that several of the `blocks` thread blocks shared.
void add_parts(const GemmProblem& p, int row_fragments, unsigned blocks, void* stream);

template <typename Math>
void launch_gemm(void (*kernel)(GemmProblem), GemmProblem p, void* stream) {
  set_geometry<Math>(p);
  const unsigned blocks = gemm_blocks(p);
  launch(kernel, blocks, GEMM_THREADS, static_cast<size_t>(p.stages) * Stage<Math>::BYTES, stream, p);
  if (shares_tiles(p)) add_parts(p, Math::MT, blocks, stream);
}

}  // namespace torchcoinfer::cuda
