// Bitmap linear layer for few rows of x: a thread block an n-block, its warps share the columns
// (fast_sparse_bitmap.cuh), 8 MT rows of x at once from L1. Group scales multiply whole sums: codes cost no rounding.

#pragma once

#include "cuda/fast_sparse_bitmap.cuh"
#include "cuda/fast_sparse_bitmap.h"

namespace torchcoinfer::cuda {
namespace {

// Scales and zero points of rows 2g and 2g + 1 for a tile.
template <typename T>
struct TileGrid {
  float scale[2];
  uint32_t zero[2];

  __device__ __forceinline__ void load(const SparseMatrix& w, int64_t block, int tile, int lane) {
    const int64_t groups = group_count(w.K, w.group_size), group = w.group_size ? tile * TILE_K / w.group_size : 0;
    const int64_t place = (block * groups + min(group, groups - 1)) * BLOCK_N + lane / 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scale[h] = load_element(w.scales, w.scale_type, place + h);
      if (w.zeros) zero[h] = pair_of<T>(w.zeros[place + h], w.zeros[place + h]);
    }
  }
};

// Columns k .. k + 3 of a row as two words, zeros beyond K.
template <typename T>
__device__ __forceinline__ uint2 load_four(const T* row, int64_t k, int64_t K, bool whole) {
  if (whole) return k < K ? __ldg(reinterpret_cast<const uint2*>(row + k)) : make_uint2(0, 0);
  uint32_t values[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = k + i < K ? same_bits<uint16_t>(row[k + i]) : 0u;
  return make_uint2(values[0] | values[1] << 16, values[2] | values[3] << 16);
}

template <typename T, int BITS, int MT>
struct Product {
  static constexpr bool SCALED = BITS != 0;
  const SparseMatrix& w;
  const T* x;  // [count, K]
  int count;
  bool whole;  // four columns of a row can be loaded at once
  int64_t block;
  int lane;
  float sums[MT][4] = {};

  __device__ __forceinline__ void load_x(int tile, uint2 (&values)[MT][2]) const {
#pragma unroll
    for (int f = 0; f < MT; ++f) {
      if (f * 8 >= count) continue;
      const int row = min(f * 8 + lane / 4, count - 1);
#pragma unroll
      for (int s = 0; s < 2; ++s)
        values[f][s] = load_four(x + row * w.K, int64_t{tile} * TILE_K + 16 * s + 4 * (lane % 4), w.K, whole);
    }
  }

  // Adds the product of one tile.
  __device__ __forceinline__ void add(const Walk<T, BITS>& walk, int v, const uint2 (&x_values)[MT][2],
                                      const TileGrid<T>& grid) {
    float part[MT][4] = {};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      uint32_t a[4], selectors[4];
      walk.fragment(v, s, a, selectors);
      if (SCALED && w.zeros) {
#pragma unroll
        for (int r = 0; r < 4; ++r)
          a[r] = subtract_pairs<T>(a[r], __byte_perm(grid.zero[r % 2], 0, selectors[r] & 0x7777u));
      }
#pragma unroll
      for (int f = 0; f < MT; ++f) {
        if (f * 8 >= count) continue;
        const uint32_t b[2] = {x_values[f][s].x, x_values[f][s].y};
        mma_16816<T>(SCALED ? part[f] : sums[f], a, b);
      }
    }
    if constexpr (SCALED) {
#pragma unroll
      for (int f = 0; f < MT; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[f][i] += grid.scale[i / 2] * part[f][i];
    }
  }
};

template <typename T, int BITS, int MT>
__global__ void __launch_bounds__((MT == 1 ? MOST_WARPS : MOST_WARPS / 2) * WARP, MT == 1 ? 2 : 1)
    multiply_bitmap(SparseMatrix w, const T* x, int64_t rows, const float* bias, T* y) {
  auto* shared = static_cast<unsigned char*>(dynamic_shared());
  const int64_t block = blockIdx.x, first_row = static_cast<int64_t>(blockIdx.y) * MT * 8;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = static_cast<int>(blockDim.x) / WARP;
  const int count = static_cast<int>(rows - first_row < MT * 8 ? rows - first_row : MT * 8);
  const bool whole = w.K % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 8 == 0;
  Product<T, BITS, MT> product{w, x + first_row * w.K, count, whole, block, lane};
  Walk<T, BITS> walk;
  walk.begin(w, block, shared);
  while (walk.next()) {
#pragma unroll 1
    for (int v = 0; v < 2 && walk.tile + v < walk.last; ++v) {
      uint2 values[MT][2];
      TileGrid<T> grid;
      if constexpr (BITS != 0) grid.load(w, block, walk.tile + v, lane);
      product.load_x(walk.tile + v, values);
      walk.prepare(v);
      product.add(walk, v, values, grid);
    }
  }
  wait_copies<0>();
  __syncthreads();  // rings become sums: [warp][row][16]
  auto* out = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int f = 0; f < MT; ++f)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      out[((warp * MT + f) * 8 + 2 * (lane % 4) + i % 2) * BLOCK_N + 2 * (lane / 4) + i / 2] = product.sums[f][i];
  __syncthreads();
  for (int i = threadIdx.x; i < count * BLOCK_N; i += blockDim.x) {
    const int64_t n = block * BLOCK_N + i % BLOCK_N;
    if (n >= w.N) continue;
    float sum = 0.f;
    for (int other = 0; other < warps; ++other) sum += out[other * MT * 8 * BLOCK_N + i];
    y[(first_row + i / BLOCK_N) * w.N + n] = T(bias ? sum + bias[n] : sum);
  }
}

template <typename T>
__device__ __forceinline__ void scale_fragment(const SparseMatrix& w, const TileGrid<T>& grid,
                                               const uint32_t (&selectors)[4], uint32_t (&a)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (w.zeros) a[r] = subtract_pairs<T>(a[r], __byte_perm(grid.zero[r % 2], 0, selectors[r] & 0x7777u));
    const float2 pair = floats_of<T>(a[r]);
    a[r] = pair_of<T>(pair.x * grid.scale[r % 2], pair.y * grid.scale[r % 2]);
  }
}

// out: [N, K], zeros where pruned.
template <typename T, int BITS>
__global__ void __launch_bounds__(MOST_WARPS* WARP) write_bitmap(SparseMatrix w, T* out) {
  const int64_t block = blockIdx.x;
  const int lane = threadIdx.x % WARP;
  const bool whole = w.K % 4 == 0 && reinterpret_cast<uintptr_t>(out) % 8 == 0;
  Walk<T, BITS> walk;
  walk.begin(w, block, static_cast<unsigned char*>(dynamic_shared()));
  while (walk.next()) {
#pragma unroll 1
    for (int v = 0; v < 2 && walk.tile + v < walk.last; ++v) {
      TileGrid<T> grid;
      if constexpr (BITS != 0) grid.load(w, block, walk.tile + v, lane);
      walk.prepare(v);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint32_t a[4], selectors[4];
        walk.fragment(v, s, a, selectors);
        if constexpr (BITS != 0) scale_fragment(w, grid, selectors, a);
        const int64_t k = static_cast<int64_t>(walk.tile + v) * TILE_K + 16 * s + 4 * (lane % 4);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int64_t n = block * BLOCK_N + lane / 4 * 2 + h;
          if (n >= w.N || k >= w.K) continue;
          T* place = out + n * w.K + k;
          if (whole)
            *reinterpret_cast<uint2*>(place) = make_uint2(a[h], a[h + 2]);
          else
            for (int i = 0; i < 4 && k + i < w.K; ++i)
              place[i] = same_bits<T>(static_cast<uint16_t>(a[h + i / 2 * 2] >> 16 * (i % 2)));
        }
      }
    }
  }
  wait_copies<0>();
}

}  // namespace

template <typename T, int BITS>
const char* run_bitmap(const LaunchBitmap& all) {
  const int fragments = all.rows <= 8 ? 1 : 8;
  const int warps = fragments == 1 ? all.warps : MOST_WARPS / 2;  // eight fragments want many registers
  const size_t shared = walk_bytes(warps);
  const auto blocks = static_cast<unsigned>(ceil_div(all.w.N, BLOCK_N));
  if (!all.x) {
    launch(write_bitmap<T, BITS>, blocks, warps * WARP, shared, all.stream, all.w, static_cast<T*>(all.y));
    return launch_error();
  }
  const auto kernel = fragments == 1 ? multiply_bitmap<T, BITS, 1> : multiply_bitmap<T, BITS, 8>;
  const size_t sums = sizeof(float) * warps * fragments * 8 * BLOCK_N;
  const int64_t most = 65535 * fragments * 8;
  for (int64_t row = 0; row < all.rows; row += most) {
    const int64_t count = all.rows - row < most ? all.rows - row : most;
    const dim3 grid(blocks, static_cast<unsigned>(ceil_div(count, fragments * 8)));
    launch(kernel, grid, warps * WARP, shared > sums ? shared : sums, all.stream, all.w,
           static_cast<const T*>(all.x) + row * all.w.K, count, all.bias, static_cast<T*>(all.y) + row * all.w.N);
  }
  return launch_error();
}

}  // namespace torchcoinfer::cuda
