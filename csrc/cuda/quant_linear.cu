// W{2,3,4,5,6,8}A16 linear layer: plain, correct, the truth for faster kernels.
//
// A thread block computes one n-block (16 columns of y) for up to ROWS rows. Sixteen threads take a tile together:
// thread j owns n = j, whose 32 codes are, in the canonical order, exactly `BITS` 32-bit words of the tile, one a plane
// vector. The TEAMS teams of a thread block walk the tiles in turns and add up in shared memory at the end.
//
//   tile: | vector 0: words of n = 0 .. 15 | vector 1 | ... | vector BITS - 1 |      word: 4 bytes i, fields f

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int TEAMS = 16;
constexpr int THREADS = TEAMS * BLOCK_N;
constexpr int ROWS = 8;
static_assert(ROWS <= TEAMS, "team m writes row m");

// Code k of one row from its words of a canonical tile.
template <int BITS>
__device__ __forceinline__ int word_code(const uint32_t (&words)[BITS], int k) {
  int code = 0;
#pragma unroll
  for (int index = 0; index < plane_count(BITS); ++index) {
    const Plane p = plane(BITS, index);
    const Field field = field_of(p.bits, 0, k);
    const uint32_t word = words[p.offset / VECTOR_BYTES + field.byte / VECTOR_BYTES];
    const int shift = 8 * (field.byte % 4) + field.shift;
    code |= static_cast<int>(word >> shift & ((1u << p.bits) - 1u)) << p.shift;
  }
  return code;
}

template <int BITS, int LAYOUT>
__global__ void __launch_bounds__(THREADS)
    linear(DenseMatrix w, const float* values, int64_t rows, const float* row_scales, const float* bias, void* y,
           Element type) {
  __shared__ float partial[TEAMS][ROWS][BLOCK_N];
  const int team = threadIdx.x / BLOCK_N, n = threadIdx.x % BLOCK_N;
  const int64_t tiles = ceil_div(w.K, TILE_K), stride = tiles * TILE_K, block = blockIdx.x;
  const int64_t column = block * BLOCK_N + n;
  const int64_t group_tiles = w.group_size ? w.group_size / TILE_K : tiles;
  const int64_t step = static_cast<int64_t>(gridDim.y) * ROWS;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * ROWS; row < rows; row += step) {
    const int count = static_cast<int>(rows - row < ROWS ? rows - row : ROWS);
    float sums[ROWS] = {};
    for (int64_t t = team; t < tiles && column < w.N; t += TEAMS) {
      const Grid grid = load_grid(w, block, t / group_tiles, n);
      const uint8_t* of_block = w.packed + block * tiles * tile_bytes(BITS);
      const auto* tile = reinterpret_cast<const uint32_t*>(of_block + t * tile_bytes(BITS));
      uint32_t words[BITS];
#pragma unroll
      for (int v = 0; v < BITS; ++v) words[v] = tile[v * BLOCK_N + n];
      float weights[TILE_K];  // not scaled yet: integers, exact
#pragma unroll LAYOUT == CANONICAL_LAYOUT ? TILE_K : 1
      for (int k = 0; k < TILE_K; ++k) {
        const int code = LAYOUT == CANONICAL_LAYOUT ? word_code<BITS>(words, k)
                                                    : device_code(of_block, BITS, tiles, t, n, k);
        weights[k] = static_cast<float>(code - grid.zero);
      }
      const float* x = values + row * stride + t * TILE_K;
#pragma unroll 1
      for (int m = 0; m < count; ++m) {
        float part = 0.f;
#pragma unroll
        for (int k = 0; k < TILE_K; ++k) part += weights[k] * x[m * stride + k];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) sums[r] += r == m ? grid.scale * part : 0.f;  // registers have no index
      }
    }
    for (int m = 0; m < ROWS; ++m) partial[team][m][n] = sums[m];
    __syncthreads();
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

template <int BITS>
void run(const DenseMatrix& w, const float* values, int64_t rows, const float* row_scales, const float* bias, void* y,
         Element type, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(w.N, BLOCK_N)), grid_size(ceil_div(rows, ROWS), 65535));
  const auto kernel = w.layout == DEVICE_LAYOUT ? linear<BITS, DEVICE_LAYOUT> : linear<BITS, CANONICAL_LAYOUT>;
  launch(kernel, grid, THREADS, 0, stream, w, values, rows, row_scales, bias, y, type);
}

}  // namespace

const char* quant_linear(const DenseMatrix& w, const float* values, int64_t rows, const float* row_scales,
                         const float* bias, void* y, Element type, void* stream) {
  if (rows == 0 || w.N == 0) return nullptr;
  switch (w.bits) {
    case 2:
      run<2>(w, values, rows, row_scales, bias, y, type, stream);
      break;
    case 3:
      run<3>(w, values, rows, row_scales, bias, y, type, stream);
      break;
    case 4:
      run<4>(w, values, rows, row_scales, bias, y, type, stream);
      break;
    case 5:
      run<5>(w, values, rows, row_scales, bias, y, type, stream);
      break;
    case 6:
      run<6>(w, values, rows, row_scales, bias, y, type, stream);
      break;
    default:
      run<8>(w, values, rows, row_scales, bias, y, type, stream);
  }
  return launch_error();
}

}  // namespace torchcoinfer::cuda
