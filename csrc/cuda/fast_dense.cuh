// Group scales and zero points of the dense format in fast kernels, and the step that all of them repeat: one quad of
// 128 columns of an n-block times x.

#pragma once

#include "cuda/fragments.cuh"

namespace torchcoinfer::cuda {

constexpr int QUAD_K = QUAD * TILE_K;

// A group's tiles within a quad: 1, 2 or 4. A group of the whole row is added up quad by quad like one of 128.
__device__ __forceinline__ int group_tiles_of(int64_t group_size) {
  return group_size == 0 ? QUAD : static_cast<int>(group_size) / TILE_K;
}

// Scales and zero points of one n-block for one quad, as stored: value 32 i + lane of the up to 4 x 16. They are loaded
// as early as the codes and turned into numbers where they are used, for a conversion would wait for the load.
struct QuadGrid {
  uint32_t scale[2], zero[2];
};

// Groups of a row, how many a quad has and by how many the next one's are further on; found once, for it divides.
struct GridSteps {
  int groups, of_quad, step;
};

__device__ __forceinline__ GridSteps grid_steps(const DenseMatrix& w) {
  const int of_quad = QUAD / group_tiles_of(w.group_size);
  return {static_cast<int>(group_count(w.K, w.group_size)), of_quad, w.group_size ? of_quad : 0};
}

__device__ __forceinline__ void load_quad_grid(QuadGrid& grid, const DenseMatrix& w, const GridSteps& steps,
                                               int64_t block, int q, int lane) {
  const int first = q * steps.step, left = steps.groups - first;
  const int count = (steps.of_quad < left ? steps.of_quad : left) * BLOCK_N;
  const int64_t start = (block * steps.groups + first) * BLOCK_N + lane;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    grid.scale[i] = 0, grid.zero[i] = 0;
    if (LANES * i + lane >= count) continue;
    grid.scale[i] = w.scale_type == Element::float32
                        ? __ldg(static_cast<const uint32_t*>(w.scales) + start + LANES * i)
                        : __ldg(static_cast<const uint16_t*>(w.scales) + start + LANES * i);
    if (w.zeros) grid.zero[i] = __ldg(w.zeros + start + LANES * i);
  }
}

__device__ __forceinline__ float stored_scale(uint32_t bits, Element type) {
  if (type == Element::float32) return __uint_as_float(bits);
  if (type == Element::float16) return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  return __uint_as_float(bits << 16);
}

// What the quad's group number `group` (0 .. 3) has for row g + 8h; all lanes call.
__device__ __forceinline__ uint32_t of_row(const uint32_t (&values)[2], int group, int h, int lane) {
  const uint32_t value = group < 2 ? values[0] : values[1];  // registers have no index
  return __shfl_sync(ALL_LANES, value, BLOCK_N * (group % 2) + lane / 4 + 8 * h);
}

// One n-block's accumulators for MT times 8 rows of x: of the group at hand, unscaled, and of all before.
template <int MT>
struct Sums {
  float group[MT][4], total[MT][4];
};

template <int MT>
__device__ __forceinline__ void clear(Sums<MT>& sums) {
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums.group[m][i] = sums.total[m][i] = 0.f;
}

// Ends a group: total += scale * group.
template <int MT>
__device__ __forceinline__ void close_group(Sums<MT>& sums, const float (&scale)[2]) {
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums.total[m][i] += scale[i / 2] * sums.group[m][i];
      sums.group[m][i] = 0.f;
    }
}

constexpr int WARP_BLOCKS = 2;  // n-blocks of a warp
constexpr int WARP_COLUMNS = WARP_BLOCKS * BLOCK_N;

// Zero points of a quad's group for the two rows of a lane in each n-block; all lanes call.
template <typename T, int BITS>
__device__ __forceinline__ void group_zeros(uint32_t (&zero)[WARP_BLOCKS][2], const QuadGrid (&grid)[WARP_BLOCKS],
                                            int group, int lane) {
#pragma unroll
  for (int i = 0; i < WARP_BLOCKS; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      zero[i][h] = zero_operand<T, BITS>(static_cast<int>(of_row(grid[i].zero, group, h, lane)));
}

// sums += a quad of the warp's n-blocks times MT times 8 rows; values(u, m): the lane's 16 bytes of x in tile u.
template <typename T, int BITS, int MT, typename Values>
__device__ __forceinline__ void multiply_quad(Sums<MT> (&sums)[WARP_BLOCKS], const QuadWords<BITS> (&quad)[WARP_BLOCKS],
                                              const QuadGrid (&grid)[WARP_BLOCKS], const DenseMatrix& w,
                                              const Values& values, int lane) {
  const int group_tiles = group_tiles_of(w.group_size);
  uint32_t zero[WARP_BLOCKS][2];
#pragma unroll
  for (int i = 0; i < WARP_BLOCKS; ++i) zero[i][0] = zero[i][1] = zero_operand<T, BITS>(implicit_zero(BITS));
  int group = 0;
#pragma unroll
  for (int u = 0; u < QUAD; ++u) {
    if (w.zeros && (u & (group_tiles - 1)) == 0) group_zeros<T, BITS>(zero, grid, group, lane);
    uint32_t a[WARP_BLOCKS][2][4];
#pragma unroll
    for (int i = 0; i < WARP_BLOCKS; ++i)
#pragma unroll
      for (int s = 0; s < 2; ++s) weight_fragment<T, BITS>(a[i][s], quad[i], u, s, zero[i]);
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      const uint4 of_rows = values(u, m);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint32_t b[2];
        values_fragment(b, of_rows, s);
#pragma unroll
        for (int i = 0; i < WARP_BLOCKS; ++i) mma_16816<T>(sums[i].group[m], a[i][s], b);
      }
    }
    if ((u + 1) & (group_tiles - 1)) continue;
#pragma unroll
    for (int i = 0; i < WARP_BLOCKS; ++i) {
      float scale[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) scale[h] = stored_scale(of_row(grid[i].scale, group, h, lane), w.scale_type);
      close_group(sums[i], scale);
    }
    ++group;
  }
}

}  // namespace torchcoinfer::cuda
