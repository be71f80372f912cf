// 2:4 linear layer by mma.sp, float survivors (BITS 0) and codes, for float16 and bfloat16 x. Device order only.
//
// A thread block takes COLUMNS_AT_ONCE n-blocks a warp, `n_warps` warps wide, for up to 8 MT rows of x a warp,
// `m_warps` warps high; the rest of its 8 warps share the columns of K and add up in shared memory at the end. Where
// that leaves multiprocessors idle, K is split over blockIdx.z too, and `reduce_splits` adds the parts, always in the
// same order. A stage, one quad (128 columns) a k-warp, is copied asynchronously, STAGES deep:
//
//   | x [rows][128 k_warps + 8] | slot of warp 0, n-block 0: codes, index, scales and zero points | slot ... |
//
// A slot keeps the device order, so that a lane finds its codes and metadata in vectors of its own; x is padded so that
// ldmatrix meets every bank once. The part of a quad that K leaves out meets zeros of x.

#pragma once

#include "cuda/fast_sparse24.h"
#include "cuda/fast_sparse24_lane.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int CHUNK_BYTES = 16;  // of an asynchronous copy
constexpr uint32_t ANY_INDEX = 0x44444444u;  // columns 0 and 1 of every four

// Bytes of an n-block's quad in a slot.
template <int BITS>
struct Slot {
  static constexpr int TILE = BITS ? LANES * BITS : TILE_CHUNKS * CHUNK * 2;
  static constexpr int INDEX = QUAD * TILE;
  static constexpr int SCALES = INDEX + QUAD * INDEX_BYTES;
  static constexpr int ZEROS = SCALES + (BITS ? QUAD * BLOCK_N * 2 : 0);
  static constexpr int BYTES = ZEROS + (BITS ? QUAD * BLOCK_N : 0);
};

// A thread's part of a block's work: what it copies for the next stage, and where it reads.
template <typename T, int BITS, int MT, bool EXACT>
struct Work24 {
  using Layout = Slot<BITS>;
  static constexpr int HALF_WARP = LANES / 2;  // copies the index, scales and zero points of one n-block
  const SparseMatrix& w;
  int count, tiles, lane, of_m, of_n, of_k, m_warps, n_warps, k_warps, row_stride;
  int quad, end_quad;  // of the block's next stage; where the block ends
  // x: the thread's first row, its next place and column, how many rows it goes on
  int row, rows_on, column, columns;
  const T* x;
  int64_t x_on;
  uint32_t x_rows[MT];  // bytes into a stage: the lane's part of ldmatrix for 8 rows of x
  // weights: the lane's next place in the values of both n-blocks, in the index of one, in its scales or zero points
  const unsigned char *values[COLUMNS_AT_ONCE], *index, *grid;
  int group, groups, group_on;  // of the grid's place; all; a step further
  int64_t grid_on;              // bytes
  bool has_grid;                // the lane copies some of it

  __device__ Work24(const SparseMatrix& weight, const Cut24& cut, const T* rows_of_x, int64_t x_columns, int row_count)
      : w(weight), count(row_count) {
    const int warp = threadIdx.x / WARP;
    lane = threadIdx.x % WARP, m_warps = cut.m_warps, n_warps = cut.n_warps, k_warps = cut.k_warps;
    of_m = warp % m_warps, of_n = warp / m_warps % n_warps, of_k = warp / (m_warps * n_warps);
    row_stride = cut.row_stride(), tiles = static_cast<int>(ceil_div(w.K, TILE_K));
    quad = static_cast<int>(blockIdx.z * cut.quads);
    end_quad = min(quad + static_cast<int>(cut.quads), static_cast<int>(ceil_div(tiles, QUAD)));
    const int chunks = k_warps * (QUAD_K / 8);
    row = threadIdx.x / chunks, rows_on = THREADS / chunks, columns = static_cast<int>(x_columns);
    column = static_cast<int>(threadIdx.x) % chunks * 8;
    x = rows_of_x + row * x_columns + quad * QUAD_K + column, x_on = rows_on * x_columns;
#pragma unroll
    for (int f = 0; f < MT; ++f) {
      const int of_block = min((of_m * MT + f) * 8 + lane % 8, count - 1);
      x_rows[f] = static_cast<uint32_t>((of_block * row_stride + of_k * QUAD_K + lane / 8 * 8) * 2);
      keep(x_rows[f]);
    }
    begin_weights();
    column += quad * QUAD_K;
  }

  __device__ void begin_weights() {
    const int64_t blocks = ceil_div(w.N, BLOCK_N), first = quad + of_k;
    const int64_t block = (static_cast<int64_t>(blockIdx.x) * n_warps + of_n) * COLUMNS_AT_ONCE;
    const auto block_of = [&](int b) { return block + b < blocks ? block + b : blocks - 1; };
#pragma unroll
    for (int b = 0; b < COLUMNS_AT_ONCE; ++b)
      values[b] = static_cast<const unsigned char*>(w.values) + (block_of(b) * tiles + first * QUAD) * Layout::TILE +
                  lane * CHUNK_BYTES;
    const int64_t own = block_of(lane / HALF_WARP);
    index = w.index + (own * tiles + first * QUAD) * INDEX_BYTES + lane % HALF_WARP * CHUNK_BYTES;
    if constexpr (BITS != 0) {
      const int at = lane % HALF_WARP, i = at < 2 * QUAD ? at / 2 : at - 2 * QUAD;  // 8 lanes of scales, 4 of zeros
      groups = static_cast<int>(group_count(w.K, w.group_size)), group_on = w.group_size ? k_warps * grids_of_quad() : 0;
      group = (w.group_size ? static_cast<int>(first) * grids_of_quad() : 0) + i;
      const int64_t place = own * groups + min(group, groups - 1);
      grid = at < 2 * QUAD ? static_cast<const unsigned char*>(w.scales) + place * 2 * BLOCK_N + at % 2 * CHUNK_BYTES
                           : w.zeros + place * BLOCK_N;
      grid_on = group_on * (at < 2 * QUAD ? 2 * BLOCK_N : BLOCK_N);
      has_grid = i < grids_of_quad() && at < (w.zeros ? 3 : 2) * QUAD;
    }
  }

  __device__ int x_bytes() const {
    return count * row_stride * 2;
  }
  __device__ unsigned char* slots(unsigned char* stage) const {
    return stage + x_bytes() + (of_k * n_warps + of_n) * COLUMNS_AT_ONCE * Layout::BYTES;
  }
  __device__ int grids_of_quad() const {
    return w.group_size ? QUAD_K / static_cast<int>(w.group_size) : 1;
  }

  // Starts the copies of the next stage.
  __device__ __forceinline__ void fill(unsigned char* stage) {
    if (quad < end_quad) {
      unsigned char* to = stage + row * row_stride * 2 + threadIdx.x % (k_warps * (QUAD_K / 8)) * CHUNK_BYTES;
      const T* from = x;
      for (int m = row; m < count; m += rows_on) {
        copy_async(to, from, column < columns);
        to += rows_on * row_stride * 2, from += x_on;
      }
      if (quad + of_k < end_quad) fill_slots(slots(stage));
    }
    commit_copies();
    quad += k_warps, column += k_warps * QUAD_K, x += k_warps * QUAD_K;
#pragma unroll
    for (int b = 0; b < COLUMNS_AT_ONCE; ++b) values[b] += k_warps * QUAD * Layout::TILE;
    index += k_warps * QUAD * INDEX_BYTES;
    if constexpr (BITS != 0) grid += grid_on, group += group_on;
  }

  __device__ __forceinline__ bool copies(int b) const {
    return m_warps == 1 || b == of_m;  // two m-warps read the same slots
  }

  __device__ __forceinline__ void fill_slots(unsigned char* to) const {
    const int there = tiles - (quad + of_k) * QUAD, own = lane / HALF_WARP;
    if (there >= QUAD) {
#pragma unroll
      for (int b = 0; b < COLUMNS_AT_ONCE; ++b)
#pragma unroll
        for (int i = 0; i < Layout::INDEX; i += ROUND_BYTES)
          if (copies(b) && i + lane * CHUNK_BYTES < Layout::INDEX)
            copy_async(to + b * Layout::BYTES + i + lane * CHUNK_BYTES, values[b] + i);
      if (copies(own)) copy_async(to + own * Layout::BYTES + Layout::INDEX + lane % HALF_WARP * CHUNK_BYTES, index);
    } else {
      for (int b = 0; b < COLUMNS_AT_ONCE; ++b)
        if (copies(b)) fill_rest(b, there, to + b * Layout::BYTES);
    }
    if constexpr (BITS != 0) {
      if (has_grid && copies(own))  // zeros beyond the last group: a scale of NaN would spoil x's zeros
        copy_async(to + own * Layout::BYTES + Layout::SCALES + lane % HALF_WARP * CHUNK_BYTES, grid, group < groups);
    }
  }

  // The tiles after the last quad, as if they were one.
  __device__ void fill_rest(int b, int there, unsigned char* to) const {
    const unsigned char* from = values[b] - lane * CHUNK_BYTES;
    if constexpr (BITS == 0) {
      for (int u = 0; u < QUAD; ++u)
        copy_async(to + u * ROUND_BYTES + lane * LANE_BYTES,
                   from + (u < there ? u * ROUND_BYTES : 0) + lane * LANE_BYTES, u < there);
    } else {
      rest_of_plane<plane(BITS, 0).bits>(from, there, lane, Layout::TILE, to);
      if constexpr (plane_count(BITS) == 2)
        rest_of_plane<plane(BITS, 1).bits>(from + LANES * plane(BITS, 1).shift, there, lane, Layout::TILE,
                                           to + QUAD * LANES * plane(BITS, 1).shift);
    }
    if (lane / HALF_WARP != b) return;
    const int at = lane % HALF_WARP;
    const auto* nibbles = reinterpret_cast<const uint32_t*>(index - at * CHUNK_BYTES);
    auto* words = reinterpret_cast<uint32_t*>(to + Layout::INDEX);
    for (int u = 0; u < QUAD; ++u) {
      const uint32_t of_tile = u < there ? nibbles[u * (INDEX_BYTES / 4) + at] : ANY_INDEX;
      words[2 * (at / 2 * 4 + u % 2 * 2 + at % 2) + u / 2] = of_tile;
    }
  }

  // sums[b][f][i]: value i of the product of n-block b and rows 8f .. 8f + 7 of the warp's part of x
  __device__ void multiply(unsigned char* stage, float (&sums)[COLUMNS_AT_ONCE][MT][4]) const {
    const unsigned char* rows[MT];
#pragma unroll
    for (int f = 0; f < MT; ++f) rows[f] = stage + x_rows[f];
    const Places places{Layout::INDEX, Layout::SCALES, w.zeros ? Layout::ZEROS : 0, grids_of_quad(),
                        w.scale_type == Element::float16};
    Lane24<T, BITS, EXACT> a[COLUMNS_AT_ONCE];
    [[maybe_unused]] float of_group[COLUMNS_AT_ONCE][MT][4] = {};  // exact: integers below 2^24
#pragma unroll
    for (int b = 0; b < COLUMNS_AT_ONCE; ++b) a[b].load(slots(stage) + b * Layout::BYTES, places, lane);
#pragma unroll
    for (int u = 0; u < QUAD; ++u) {
      uint32_t part[MT][4];
#pragma unroll
      for (int f = 0; f < MT; ++f)
        if ((of_m * MT + f) * 8 < count) load_matrices<4>(part[f], rows[f] + u * TILE_K * 2);
#pragma unroll
      for (int b = 0; b < COLUMNS_AT_ONCE; ++b) {
        uint32_t fragment[4];
        a[b].fragment(u, fragment);
#pragma unroll
        for (int f = 0; f < MT; ++f)
          if ((of_m * MT + f) * 8 < count) {
            float(&into)[4] = EXACT ? of_group[b][f] : sums[b][f];
            if (u % 2)
              mma_sp_16832<T, 1>(into, fragment, part[f], a[b].metadata(u));
            else
              mma_sp_16832<T, 0>(into, fragment, part[f], a[b].metadata(u));
          }
        if constexpr (EXACT) a[b].close_group(u, of_group[b], sums[b]);
      }
    }
  }

  // Adds the k-warps' sums in order and writes them, or this split's part of them.
  __device__ void store(float* out, const float (&sums)[COLUMNS_AT_ONCE][MT][4], int64_t rows, int64_t first_row,
                        const float* row_scales, const float* bias, T* y, float* parts) const {
    const int columns = n_warps * COLUMNS_AT_ONCE * BLOCK_N, stride = columns + OUT_PAD, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int b = 0; b < COLUMNS_AT_ONCE; ++b)
#pragma unroll
      for (int f = 0; f < MT; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = (of_m * MT + f) * 8 + 2 * t + i % 2;
          const int column = (of_n * COLUMNS_AT_ONCE + b) * BLOCK_N + g + i / 2 * 8;
          if (row < count) out[(of_k * count + row) * stride + column] = sums[b][f][i];
        }
    __syncthreads();
    const int64_t first_column = static_cast<int64_t>(blockIdx.x) * columns;
    const int shift = __ffs(columns) - 1;  // a power of two
    for (int i = threadIdx.x; i < count << shift; i += THREADS) {
      const int row = i >> shift, of_block = i & (columns - 1);
      const int64_t column = first_column + of_block;
      float sum = 0.f;
      for (int k = 0; k < k_warps; ++k) sum += out[(k * count + row) * stride + of_block];
      if (column >= w.N) continue;
      if (parts) {
        parts[(blockIdx.z * rows + first_row + row) * w.N + column] = sum;
        continue;
      }
      if (EXACT) sum *= row_scales[first_row + row];
      y[(first_row + row) * w.N + column] = T(bias ? sum + bias[column] : sum);
    }
  }
};

// x: [rows, columns], columns a multiple of 8, zeros beyond K, from a multiple of 16 bytes; EXACT: int8 codes, whose
// row_scales [rows] multiply y. parts: nullptr, or float [splits, rows, N] for sums that are not whole yet.
template <typename T, int BITS, int MT, bool EXACT>
__global__ void __launch_bounds__(THREADS, MT <= 2 ? 2 : 1)
    multiply24(SparseMatrix w, const T* x, int64_t columns, int64_t rows, const float* row_scales, const float* bias,
               T* y, float* parts, Cut24 cut) {
  auto* shared = static_cast<unsigned char*>(dynamic_shared());
  const int high = cut.rows_of_block();
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * high;
  const int count = static_cast<int>(rows - first_row < high ? rows - first_row : high);
  Work24<T, BITS, MT, EXACT> work(w, cut, x + first_row * columns, columns, count);
  const int stage_bytes = work.x_bytes() + cut.n_warps * cut.k_warps * COLUMNS_AT_ONCE * Slot<BITS>::BYTES;
  float sums[COLUMNS_AT_ONCE][MT][4] = {};
  for (int step = 0; step < STAGES - 1; ++step) work.fill(shared + step * stage_bytes);
  int at = 0, to_fill = STAGES - 1;  // stages
  for (int quad = static_cast<int>(blockIdx.z * cut.quads); quad < work.end_quad; quad += cut.k_warps) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // what everybody copied for this step is there, and the stage before is free
    work.fill(shared + to_fill * stage_bytes);
    if (quad + work.of_k < work.end_quad) work.multiply(shared + at * stage_bytes, sums);
    at = at + 1 < STAGES ? at + 1 : 0, to_fill = to_fill + 1 < STAGES ? to_fill + 1 : 0;
  }
  wait_copies<0>();
  __syncthreads();  // the stages become sums
  work.store(reinterpret_cast<float*>(shared), sums, rows, first_row, row_scales, bias, y, parts);
}

}  // namespace

template <typename T, int BITS>
const char* run_sparse24(const Launch24& all) {
  const Cut24& cut = all.cut;
  auto kernel = cut.m_fragments == 2 ? multiply24<T, BITS, 2, false> : multiply24<T, BITS, 8, false>;
  if constexpr (BITS != 0)
    if (all.row_scales) kernel = multiply24<T, BITS, 2, true>;
  const int64_t high = cut.rows_of_block(), most = 65535 * high;
  for (int64_t row = 0; row < all.rows; row += most) {
    const int64_t count = all.rows - row < most ? all.rows - row : most;
    const dim3 grid(static_cast<unsigned>(cut.groups), static_cast<unsigned>(ceil_div(count, high)),
                    static_cast<unsigned>(cut.splits));
    launch(kernel, grid, THREADS, static_cast<size_t>(cut.shared_bytes), all.stream, all.w,
           static_cast<const T*>(all.x) + row * all.columns, all.columns, count, all.row_scales, all.bias,
           static_cast<T*>(all.y) + row * all.w.N, cut.splits > 1 ? all.parts : nullptr, cut);
    if (cut.splits == 1) continue;
    const char* error = reduce_splits(all.parts, cut.splits, count, all.w.N, all.row_scales, all.bias,
                                      static_cast<T*>(all.y) + row * all.w.N, all.type, all.stream);
    if (error) return error;
  }
  return launch_error();
}

}  // namespace torchcoinfer::cuda
