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

// Two values each.
__device__ __forceinline__ uint32_t add_pairs(uint32_t a, uint32_t b) {
  return same_bits<uint32_t>(__hadd2(same_bits<__half2>(a), same_bits<__half2>(b)));
}

// x: [rows, columns], columns a multiple of 8, zeros beyond K, from a multiple of 16 bytes.
template <typename T, int BITS, int MT>
struct Product {
  static constexpr bool SCALED = BITS != 0;
  const SparseMatrix& w;
  int count;          // rows
  const T* x;         // the lane's four columns of the first row
  uint32_t rows[MT];  // elements from there to its row of each fragment
  int left;           // columns from the lane's first on
  float sums[MT][4];

  __device__ Product(const SparseMatrix& weight, const T* first, int64_t columns, int row_count, int lane)
      : w(weight), count(row_count), x(first + 4 * (lane % 4)), left(static_cast<int>(columns) - 4 * (lane % 4)) {
    keep(x);
#pragma unroll
    for (int f = 0; f < MT; ++f) {
      rows[f] = static_cast<uint32_t>(min(f * 8 + lane / 4, count - 1) * columns);
      keep(rows[f]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[f][i] = 0.f;
    }
  }

  __device__ __forceinline__ bool has(int f) const {
    return f == 0 || f * 8 < count;
  }

  __device__ __forceinline__ void load_x(int tile, uint2 (&values)[MT][2]) const {
#pragma unroll
    for (int f = 0; f < MT; ++f) {
      if (!has(f)) continue;
      const auto* place = reinterpret_cast<const uint2*>(x + (rows[f] + tile * TILE_K));
      values[f][0] = tile * TILE_K < left ? __ldg(place) : make_uint2(0, 0);
      values[f][1] = tile * TILE_K + 16 < left ? __ldg(place + 4) : make_uint2(0, 0);
    }
  }

  // Adds the product of one tile.
  template <int V>
  __device__ __forceinline__ void add(const Walk<T, BITS>& walk, const uint2 (&x_values)[MT][2],
                                      const TileGrid<T>& grid) {
    float part[MT][4] = {};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      uint32_t a[4], selectors[4];
      walk.template fragment<V>(s, a, selectors);
      if (SCALED && w.zeros) {
#pragma unroll
        for (int r = 0; r < 4; ++r)
          a[r] = subtract_pairs<T>(a[r], select_bytes(grid.zero[r % 2], 0, selectors[r]));
      }
#pragma unroll
      for (int f = 0; f < MT; ++f) {
        if (!has(f)) continue;
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
__global__ void __launch_bounds__((MT == 1 ? MOST_WARPS : MOST_WARPS / 2) * WARP, MT == 1 && BITS == 0 ? 2 : 1)
    multiply_bitmap(SparseMatrix w, const T* x, int64_t columns, int64_t rows, const float* row_scales,
                    const float* bias, T* y) {
  auto* shared = static_cast<unsigned char*>(dynamic_shared());
  const int64_t block = blockIdx.x, first_row = static_cast<int64_t>(blockIdx.y) * MT * 8;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = static_cast<int>(blockDim.x) / WARP;
  const int count = static_cast<int>(rows - first_row < MT * 8 ? rows - first_row : MT * 8);
  Product<T, BITS, MT> product(w, x + first_row * columns, columns, count, lane);
  Walk<T, BITS> walk;
  walk.begin(w, block, shared);
  while (walk.next())
    for_tiles(walk, [&](auto number) {
      constexpr int V = decltype(number)::value;
      uint2 values[MT][2];
      TileGrid<T> grid;
      product.load_x(walk.tile + V, values);
      if constexpr (BITS != 0) grid.load(w, block, walk.tile + V, lane);
      walk.template prepare<V>();
      product.template add<V>(walk, values, grid);
    });
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
    if (row_scales) sum *= row_scales[first_row + i / BLOCK_N];
    y[(first_row + i / BLOCK_N) * w.N + n] = T(bias ? sum + bias[n] : sum);
  }
}

template <typename T>
__device__ __forceinline__ void scale_fragment(const SparseMatrix& w, const TileGrid<T>& grid,
                                               const uint32_t (&selectors)[4], uint32_t (&a)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (w.zeros) a[r] = subtract_pairs<T>(a[r], select_bytes(grid.zero[r % 2], 0, selectors[r]));
    const float2 pair = floats_of<T>(a[r]);
    a[r] = pair_of<T>(pair.x * grid.scale[r % 2], pair.y * grid.scale[r % 2]);
  }
}

// Four columns of a row, of which the matrix has `left`.
template <typename T>
__device__ __forceinline__ void write_four(T* place, int64_t left, bool whole, uint32_t first, uint32_t second) {
  if (whole) {
    *reinterpret_cast<uint2*>(place) = make_uint2(first, second);
    return;
  }
  for (int i = 0; i < 4 && i < left; ++i)
    place[i] = same_bits<T>(static_cast<uint16_t>((i < 2 ? first : second) >> 16 * (i % 2)));
}

// out: [N, K], zeros where pruned.
template <typename T, int BITS>
__global__ void __launch_bounds__(MOST_WARPS* WARP, 1) write_bitmap(SparseMatrix w, T* out) {
  const int64_t block = blockIdx.x;
  const int lane = threadIdx.x % WARP;
  const bool whole = w.K % 4 == 0 && reinterpret_cast<uintptr_t>(out) % 8 == 0;
  Walk<T, BITS> walk;
  walk.begin(w, block, static_cast<unsigned char*>(dynamic_shared()));
  while (walk.next())
    for_tiles(walk, [&](auto number) {
      constexpr int V = decltype(number)::value;
      [[maybe_unused]] TileGrid<T> grid;
      if constexpr (BITS != 0) grid.load(w, block, walk.tile + V, lane);
      walk.template prepare<V>();
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint32_t a[4], selectors[4];
        walk.template fragment<V>(s, a, selectors);
        if constexpr (BITS != 0) scale_fragment(w, grid, selectors, a);
        const int64_t k = static_cast<int64_t>(walk.tile + V) * TILE_K + 16 * s + 4 * (lane % 4);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int64_t n = block * BLOCK_N + lane / 4 * 2 + h;
          if (n < w.N && k < w.K) write_four(out + n * w.K + k, w.K - k, whole, a[h], a[h + 2]);
        }
      }
    });
  wait_copies<0>();
}

// out: codes of 8 bits in the device order. Codes less their zero point, or 0 where pruned, plus 1024 and the zero point
// to be are fp16 numbers whose low bytes are the result.
template <int BITS>
__global__ void __launch_bounds__(MOST_WARPS* WARP, 1) expand_bitmap(SparseMatrix w, uint8_t* out) {
  constexpr float ONE_BIT = 1024.f;  // fp16 numbers from here on have a lowest bit worth 1
  const int64_t block = blockIdx.x, tiles = ceil_div(w.K, TILE_K);
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  Walk<__half, BITS> walk;
  walk.begin(w, block, static_cast<unsigned char*>(dynamic_shared()));
  while (walk.next())
    for_tiles(walk, [&](auto number) {
      constexpr int V = decltype(number)::value;
      TileGrid<__half> grid;
      grid.load(w, block, walk.tile + V, lane);
      walk.template prepare<V>();
      uint8_t* tile = out + (block * tiles + walk.tile + V) * tile_bytes(8);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint32_t a[4], selectors[4];
        walk.template fragment<V>(s, a, selectors);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t point = pair_of<__half>(implicit_zero(8), implicit_zero(8));
          if (w.zeros) {
            point = grid.zero[h];
            a[h] = subtract_pairs<__half>(a[h], select_bytes(point, 0, selectors[h]));
            a[h + 2] = subtract_pairs<__half>(a[h + 2], select_bytes(point, 0, selectors[h + 2]));
          }
          const uint32_t raised = add_pairs(point, pair_of<__half>(ONE_BIT, ONE_BIT));
          const uint32_t bytes = __byte_perm(add_pairs(a[h], raised), add_pairs(a[h + 2], raised), 0x6420);
          const int n = 2 * g + h, k = 16 * s + 4 * t;
          reinterpret_cast<uint32_t*>(tile)[4 * dense_lane(n, k) + 2 * (n / 8) + k % 8 / 4] = bytes;
        }
      }
    });
  wait_copies<0>();
}

}  // namespace

template <int BITS>
const char* run_expand(const LaunchBitmap& all) {
  const int warps = MOST_WARPS / 2;
  launch(expand_bitmap<BITS>, static_cast<unsigned>(ceil_div(all.w.N, BLOCK_N)), warps * WARP, walk_bytes(warps),
         all.stream, all.w, static_cast<uint8_t*>(all.y));
  return launch_error();
}

template <typename T, int BITS>
const char* run_bitmap(const LaunchBitmap& all) {
  const int fragments = all.rows <= 8 ? 1 : 8;
  const int warps = fragments == 1 && BITS == 0 ? all.warps : MOST_WARPS / 2;  // the others want many registers
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
           static_cast<const T*>(all.x) + row * all.columns, all.columns, count,
           all.row_scales ? all.row_scales + row : nullptr, all.bias, static_cast<T*>(all.y) + row * all.w.N);
  }
  return launch_error();
}

}  // namespace torchcoinfer::cuda
