// The weight from the device order at the speed of memory, for a matrix product by cuBLAS: where x has so many rows that
// a tensor core fed through registers loses more than writing and reading the decoded weight costs.
//
// A warp decodes quads of n-blocks: 16 rows of 128 columns. Lane (g, t) has 8 neighboring columns of rows g and g + 8 in
// each tile, 16 bytes of the result; four lanes write 64 neighboring bytes.

#include "cuda/fast_dense.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;

// T: of the result; codes less their zero points are exact in fp16, and so is their float32.
template <typename T>
__device__ __forceinline__ void store_eight(T* place, const uint32_t (&pairs)[4], float scale) {
  float values[8];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 two = floats_of<__half>(pairs[j]);
    values[2 * j] = scale * two.x, values[2 * j + 1] = scale * two.y;
  }
  if constexpr (std::is_same_v<T, float>) {
    reinterpret_cast<float4*>(place)[0] = make_float4(values[0], values[1], values[2], values[3]);
    reinterpret_cast<float4*>(place)[1] = make_float4(values[4], values[5], values[6], values[7]);
  } else {
    *reinterpret_cast<uint4*>(place) = make_uint4(pair_of<T>(values[0], values[1]), pair_of<T>(values[2], values[3]),
                                                  pair_of<T>(values[4], values[5]), pair_of<T>(values[6], values[7]));
  }
}

// Zeros from column K on, whole vectors: `columns` is a multiple of 8.
template <typename T>
__device__ __forceinline__ void clear_beyond(T* place, int64_t column, int64_t K) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (column + i >= K) place[i] = T(0.f);
}

template <typename T, int BITS>
__global__ void __launch_bounds__(THREADS) decode(DenseMatrix w, int64_t columns, T* out) {
  const int lane = threadIdx.x % WARP, group_tiles = group_tiles_of(w.group_size);
  const int64_t tiles = ceil_div(w.K, TILE_K), quads = ceil_div(tiles, QUAD), all = ceil_div(w.N, BLOCK_N) * quads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (THREADS / WARP);
  const GridSteps steps = grid_steps(w);
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP; at < all; at += step) {
    const int64_t block = at / quads, q = at % quads, left = tiles - q * QUAD;
    QuadWords<BITS> quad;
    QuadGrid grid;
    const uint8_t* place = w.packed + block * tiles * tile_bytes(BITS) + q * QUAD_BYTES<BITS>;
    if (left >= QUAD)
      load_quad<BITS, true>(quad, place, lane);
    else
      load_rest<BITS>(quad, place, static_cast<int>(left), lane);
    load_quad_grid(grid, w, steps, block, static_cast<int>(q), lane);
#pragma unroll
    for (int u = 0; u < QUAD; ++u) {
      const int64_t column = q * QUAD_K + u * TILE_K + 8 * (lane % 4);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t row = block * BLOCK_N + lane / 4 + 8 * h;
        const float scale = stored_scale(of_row(grid.scale, u / group_tiles, h, lane), w.scale_type);
        const uint32_t of_group = of_row(grid.zero, u / group_tiles, h, lane);
        const int zero = w.zeros ? static_cast<int>(of_group) : implicit_zero(BITS);
        const uint32_t operand[2] = {zero_operand<__half, BITS>(zero), zero_operand<__half, BITS>(zero)};
        uint32_t first[4], second[4];
        weight_fragment<__half, BITS>(first, quad, u, 0, operand);
        weight_fragment<__half, BITS>(second, quad, u, 1, operand);
        const uint32_t pairs[4] = {first[h], first[h + 2], second[h], second[h + 2]};
        if (row >= w.N || column >= columns) continue;
        store_eight(out + row * columns + column, pairs, scale);
        if (column + 8 > w.K) clear_beyond(out + row * columns + column, column, w.K);
      }
    }
  }
}

template <typename T, int BITS>
void run(const DenseMatrix& w, int64_t columns, void* out, void* stream) {
  const int64_t warps = ceil_div(w.N, BLOCK_N) * ceil_div(w.K, QUAD_K);
  launch(decode<T, BITS>, grid_size(ceil_div(warps, THREADS / WARP), MOST_BLOCKS), THREADS, 0, stream, w, columns,
         static_cast<T*>(out));
}

template <typename T>
void run_bits(const DenseMatrix& w, int64_t columns, void* out, void* stream) {
  const auto kernel = w.bits == 2   ? run<T, 2>
                      : w.bits == 3 ? run<T, 3>
                      : w.bits == 4 ? run<T, 4>
                      : w.bits == 5 ? run<T, 5>
                      : w.bits == 6 ? run<T, 6>
                                    : run<T, 8>;
  kernel(w, columns, out, stream);
}

}  // namespace

const char* decode_weight(const DenseMatrix& w, Element type, int64_t columns, void* out, void* stream) {
  if (w.N == 0 || w.K == 0) return nullptr;
  const auto kernel = type == Element::float32   ? run_bits<float>
                      : type == Element::float16 ? run_bits<__half>
                                                 : run_bits<__nv_bfloat16>;
  kernel(w, columns, out, stream);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
