// 2:4 linear layer by mma.sp, float survivors (BITS 0) and codes, for float16 and bfloat16 x. Device order only.
//
// A thread block takes COLUMNS_AT_ONCE n-blocks a warp, `n_warps` warps wide, for up to 8 MT rows of x a warp,
// `m_warps` warps high; the rest of its 8 warps share the columns of K among them and add up in shared memory at the end. Where
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

template <typename T, int BITS, int MT>
struct Work24 {
  using Layout = Slot<BITS>;
  const SparseMatrix& w;
  const T* x;  // [count, K], from the block's first row
  int count;
  bool whole_chunks;  // x can be copied in 16 bytes
  int64_t tiles, blocks, first_quad, end_quad, first_block;
  int lane, of_m, of_n, of_k, m_warps, n_warps, k_warps, row_stride;

  __device__ int x_bytes() const {
    return count * row_stride * 2;
  }
  __device__ unsigned char* slot(unsigned char* stage, int b) const {
    return stage + x_bytes() + ((of_k * n_warps + of_n) * COLUMNS_AT_ONCE + b) * Layout::BYTES;
  }

  __device__ void fill(int step, unsigned char* stage) const {
    const int64_t quad = first_quad + static_cast<int64_t>(step) * k_warps;
    if (quad < end_quad) {
      fill_x(quad * QUAD_K, reinterpret_cast<T*>(stage));
      for (int b = of_m; b < COLUMNS_AT_ONCE && quad + of_k < end_quad; b += m_warps)
        fill_slot(first_block + b < blocks ? first_block + b : blocks - 1, quad + of_k, slot(stage, b));
    }
    commit_copies();
  }

  __device__ void fill_x(int64_t first, T* to) const {
    const int chunks = k_warps * QUAD_K / 8, shift = __ffs(chunks) - 1;
    for (int i = threadIdx.x; i < count * chunks; i += THREADS) {
      const int m = i >> shift, column = (i & (chunks - 1)) * 8;
      const int64_t k = first + column;
      T* target = to + m * row_stride + column;
      const T* source = x + m * w.K + k;
      if (whole_chunks)
        copy_async(target, k < w.K ? source : x, k < w.K);
      else
        for (int j = 0; j < 8; ++j) target[j] = k + j < w.K ? source[j] : T(0.f);
    }
  }

  __device__ void fill_slot(int64_t block, int64_t quad, unsigned char* to) const {
    const int64_t tile = block * tiles + quad * QUAD;
    const auto* values = static_cast<const unsigned char*>(w.values) + tile * Layout::TILE;
    const uint8_t* index = w.index + tile * INDEX_BYTES;
    const int there = static_cast<int>(tiles - quad * QUAD);
    if (there >= QUAD) {
#pragma unroll
      for (int i = 0; i < Layout::INDEX; i += ROUND_BYTES)
        if (i + lane * CHUNK_BYTES < Layout::INDEX)
          copy_async(to + i + lane * CHUNK_BYTES, values + i + lane * CHUNK_BYTES);
      if (lane < QUAD * INDEX_BYTES / CHUNK_BYTES)
        copy_async(to + Layout::INDEX + lane * CHUNK_BYTES, index + lane * CHUNK_BYTES);
    } else {
      fill_rest(values, index, there, to);
    }
    if constexpr (BITS != 0) fill_grid(block, quad, to);
  }

  // The tiles after the last quad, as if they were one.
  __device__ void fill_rest(const unsigned char* values, const uint8_t* index, int there, unsigned char* to) const {
    if constexpr (BITS == 0) {
      for (int u = 0; u < QUAD; ++u)
        copy_async(to + u * ROUND_BYTES + lane * LANE_BYTES,
                   u < there ? values + u * ROUND_BYTES + lane * LANE_BYTES : values, u < there);
    } else {
      rest_of_plane<plane(BITS, 0).bits>(values, there, lane, Layout::TILE, to);
      if constexpr (plane_count(BITS) == 2)
        rest_of_plane<plane(BITS, 1).bits>(values + LANES * plane(BITS, 1).shift, there, lane, Layout::TILE,
                                           to + QUAD * LANES * plane(BITS, 1).shift);
    }
    if (lane >= INDEX_BYTES / 4) return;
    auto* words = reinterpret_cast<uint32_t*>(to + Layout::INDEX);
    for (int u = 0; u < QUAD; ++u)
      words[2 * (lane / 2 * 4 + u % 2 * 2 + lane % 2) + u / 2] =
          u < there ? reinterpret_cast<const uint32_t*>(index + u * INDEX_BYTES)[lane] : ANY_INDEX;
  }

  __device__ int grids_of_quad() const {
    return w.group_size ? QUAD_K / static_cast<int>(w.group_size) : 1;
  }
  __device__ void fill_grid(int64_t block, int64_t quad, unsigned char* to) const {
    const int64_t groups = group_count(w.K, w.group_size), first = w.group_size ? quad * grids_of_quad() : 0;
    const int i = lane < 2 * QUAD ? lane / 2 : lane - 2 * QUAD;
    const bool there = i < grids_of_quad() && first + i < groups;
    const int64_t row = there ? (block * groups + first + i) * BLOCK_N : 0;
    if (lane < 2 * QUAD)
      copy_async(to + Layout::SCALES + lane * CHUNK_BYTES,
                 static_cast<const unsigned char*>(w.scales) + 2 * row + lane % 2 * CHUNK_BYTES, there);
    else if (lane < 3 * QUAD && w.zeros)
      copy_async(to + Layout::ZEROS + i * CHUNK_BYTES, w.zeros + row, there);
  }

  // sums[b][f][i]: value i of the product of n-block b and rows 8f .. 8f + 7 of the warp's part of x
  __device__ void multiply(unsigned char* stage, float (&sums)[COLUMNS_AT_ONCE][MT][4]) const {
    const T* rows[MT];
#pragma unroll
    for (int f = 0; f < MT; ++f) {
      const int row = (of_m * MT + f) * 8 + lane % 8;
      rows[f] = reinterpret_cast<const T*>(stage) + (row < count ? row : count - 1) * row_stride + of_k * QUAD_K +
                lane / 8 * 8;
    }
    Lane24<T, BITS> a[COLUMNS_AT_ONCE];
#pragma unroll
    for (int b = 0; b < COLUMNS_AT_ONCE; ++b)
      a[b].load(slot(stage, b), Places{Layout::INDEX, Layout::SCALES, w.zeros ? Layout::ZEROS : 0, grids_of_quad(),
                                       w.scale_type == Element::float16},
                lane);
#pragma unroll
    for (int u = 0; u < QUAD; ++u) {
      uint32_t part[MT][4];
#pragma unroll
      for (int f = 0; f < MT; ++f)
        if ((of_m * MT + f) * 8 < count) load_matrices<4>(part[f], rows[f] + u * TILE_K);
#pragma unroll
      for (int b = 0; b < COLUMNS_AT_ONCE; ++b) {
        uint32_t fragment[4];
        a[b].fragment(u, fragment);
#pragma unroll
        for (int f = 0; f < MT; ++f)
          if ((of_m * MT + f) * 8 < count) {
            if (u % 2)
              mma_sp_16832<T, 1>(sums[b][f], fragment, part[f], a[b].metadata(u));
            else
              mma_sp_16832<T, 0>(sums[b][f], fragment, part[f], a[b].metadata(u));
          }
      }
    }
  }

  // Adds the k-warps' sums in order and writes them, or this split's part of them.
  __device__ void store(float* out, const float (&sums)[COLUMNS_AT_ONCE][MT][4], int64_t rows, int64_t first_row,
                        const float* bias, T* y, float* parts) const {
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
    for (int i = threadIdx.x; i < count * columns; i += THREADS) {
      const int row = i / columns;
      const int64_t column = first_column + i % columns;
      float sum = 0.f;
      for (int k = 0; k < k_warps; ++k) sum += out[(k * count + row) * stride + i % columns];
      if (column >= w.N) continue;
      if (parts)
        parts[(blockIdx.z * rows + first_row + row) * w.N + column] = sum;
      else
        y[(first_row + row) * w.N + column] = T(bias ? sum + bias[column] : sum);
    }
  }
};

// parts: nullptr, or float [splits, rows, N] for sums that are not whole yet
template <typename T, int BITS, int MT>
__global__ void __launch_bounds__(THREADS, MT <= 2 ? 2 : 1)
    multiply24(SparseMatrix w, const T* x, int64_t rows, const float* bias, T* y, float* parts, Cut24 cut) {
  auto* shared = static_cast<unsigned char*>(dynamic_shared());
  const int warp = threadIdx.x / WARP, high = cut.m_warps * MT * 8;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * high, quads = ceil_div(ceil_div(w.K, TILE_K), QUAD);
  const int of_m = warp % cut.m_warps, of_n = warp / cut.m_warps % cut.n_warps;
  const int64_t first_quad = blockIdx.z * cut.quads, last = first_quad + cut.quads;
  const Work24<T, BITS, MT> work{
      w,
      x + first_row * w.K,
      static_cast<int>(rows - first_row < high ? rows - first_row : high),
      w.K % 8 == 0 && reinterpret_cast<uintptr_t>(x) % CHUNK_BYTES == 0,
      ceil_div(w.K, TILE_K),
      ceil_div(w.N, BLOCK_N),
      first_quad,
      last < quads ? last : quads,
      (static_cast<int64_t>(blockIdx.x) * cut.n_warps + of_n) * COLUMNS_AT_ONCE,
      static_cast<int>(threadIdx.x) % WARP,
      of_m,
      of_n,
      warp / (cut.m_warps * cut.n_warps),
      cut.m_warps,
      cut.n_warps,
      cut.k_warps,
      cut.row_stride(),
  };
  const int stage_bytes = work.x_bytes() + cut.n_warps * cut.k_warps * COLUMNS_AT_ONCE * Slot<BITS>::BYTES;
  const int steps = static_cast<int>(ceil_div(work.end_quad - first_quad, cut.k_warps));
  float sums[COLUMNS_AT_ONCE][MT][4] = {};
  for (int step = 0; step < STAGES - 1; ++step) work.fill(step, shared + step * stage_bytes);
  for (int step = 0; step < steps; ++step) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // what everybody copied for this step is there, and the stage before is free
    work.fill(step + STAGES - 1, shared + (step + STAGES - 1) % STAGES * stage_bytes);
    if (first_quad + static_cast<int64_t>(step) * cut.k_warps + work.of_k < work.end_quad)
      work.multiply(shared + step % STAGES * stage_bytes, sums);
  }
  wait_copies<0>();
  __syncthreads();  // the stages become sums
  work.store(reinterpret_cast<float*>(shared), sums, rows, first_row, bias, y, parts);
}

}  // namespace

template <typename T, int BITS>
const char* run_sparse24(const Launch24& all) {
  const Cut24& cut = all.cut;
  const auto kernel = cut.m_fragments == 2 ? multiply24<T, BITS, 2> : multiply24<T, BITS, 8>;
  const int64_t high = cut.rows_of_block(), most = 65535 * high;
  for (int64_t row = 0; row < all.rows; row += most) {
    const int64_t count = all.rows - row < most ? all.rows - row : most;
    const dim3 grid(static_cast<unsigned>(cut.groups), static_cast<unsigned>(ceil_div(count, high)),
                    static_cast<unsigned>(cut.splits));
    launch(kernel, grid, THREADS, cut.shared_bytes, all.stream, all.w, static_cast<const T*>(all.x) + row * all.w.K,
           count, all.bias, static_cast<T*>(all.y) + row * all.w.N, cut.splits > 1 ? all.parts : nullptr, cut);
    if (cut.splits == 1) continue;
    const char* error = reduce_splits(all.parts, cut.splits, count, all.w.N, nullptr, all.bias,
                                      static_cast<T*>(all.y) + row * all.w.N, all.type, all.stream);
    if (error) return error;
  }
  return launch_error();
}

}  // namespace torchcoinfer::cuda
