// Rows of x as the fast kernels take them.

#include "cuda/fast_dense.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;

// Word: an unsigned integer as wide as an element.
template <typename Word>
__global__ void __launch_bounds__(THREADS) pad(const Word* x, int64_t rows, int64_t K, int64_t columns, Word* out) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    for (int64_t k = threadIdx.x; k < columns; k += THREADS) out[row * columns + k] = k < K ? x[row * K + k] : Word{0};
}

constexpr float CODE_TOP = 127.f;

// Columns k .. k + 7 of a row, zeros beyond K.
__device__ __forceinline__ void load_eight(float (&values)[8], const void* x, Element type, int64_t row, int64_t K,
                                           int64_t k, bool vectors) {
  if (vectors && k < K) {
    const uint4 four = __ldg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(x) + row * K + k));
    const uint32_t pairs[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 two = type == Element::float16 ? floats_of<__half>(pairs[j]) : floats_of<__nv_bfloat16>(pairs[j]);
      values[2 * j] = two.x, values[2 * j + 1] = two.y;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = k + i < K ? load_element(x, type, row * K + k + i) : 0.f;
}

// A thread block a row, 8 columns a lane at a time; the lanes of a span add up its codes.
__global__ void __launch_bounds__(THREADS)
    quantize(const void* x, Element type, int64_t rows, int64_t K, int bits, int span, int64_t sum_rows, int8_t* codes,
             int32_t* sums, float* scales, bool vectors) {
  __shared__ float scratch[THREADS / WARP];
  const int64_t columns = ceil_div(K, QUAD_K) * QUAD_K;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float largest = 0.f;
    bool finite = true;
    for (int64_t k = 8 * threadIdx.x; k < K; k += 8 * THREADS) {
      float values[8];
      load_eight(values, x, type, row, K, k, vectors);
#pragma unroll
      for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(values[i])), finite = finite && isfinite(values[i]);
    }
    largest = block_maximum(largest, scratch);
    finite = __syncthreads_and(finite);
    const float inverse = largest > 0.f ? CODE_TOP / largest : 0.f;
    if (threadIdx.x == 0) scales[row] = finite ? largest / CODE_TOP : __int_as_float(0x7fc00000);
    const int64_t end = ceil_div(columns, 8 * WARP) * 8 * WARP;  // whole warps: their lanes add up together
    for (int64_t k = 8 * threadIdx.x; k < end; k += 8 * THREADS) {
      float values[8];
      load_eight(values, x, type, row, K, k, vectors);
      uint32_t words[2] = {0, 0};
      int sum = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float code = fminf(fmaxf(rintf(__fmul_rn(values[i], inverse)), -CODE_TOP), CODE_TOP);
        const int number = static_cast<int>(code), place = bits == 8 ? byte_place(8, i) : byte_place(4, i);
        words[place / 4] |= static_cast<uint32_t>(number & 255) << 8 * (place % 4);
        sum += number;
      }
      for (int step = 1; step < span / 8; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
      if (k >= columns) continue;
      *reinterpret_cast<uint2*>(codes + row * columns + k) = make_uint2(words[0], words[1]);
      if (k % span == 0) sums[k / span * sum_rows + row] = sum;
    }
  }
}

}  // namespace

const char* pad_rows(const void* x, Element type, int64_t rows, int64_t K, int64_t columns, void* out, void* stream) {
  if (rows == 0 || columns == 0) return nullptr;
  const unsigned grid = grid_size(rows, MOST_BLOCKS);
  if (type == Element::float32)
    launch(pad<uint32_t>, grid, THREADS, 0, stream, static_cast<const uint32_t*>(x), rows, K, columns,
           static_cast<uint32_t*>(out));
  else
    launch(pad<uint16_t>, grid, THREADS, 0, stream, static_cast<const uint16_t*>(x), rows, K, columns,
           static_cast<uint16_t*>(out));
  return launch_error();
}

const char* byte_rows(const void* x, Element type, int64_t rows, int64_t K, int bits, int span, int64_t sum_rows,
                      int8_t* codes, int32_t* sums, float* scales, void* stream) {
  if (rows == 0 || K == 0) return nullptr;
  const bool vectors = type != Element::float32 && K % 8 == 0 && reinterpret_cast<uintptr_t>(x) % LANE_BYTES == 0;
  launch(quantize, grid_size(rows, MOST_BLOCKS), THREADS, 0, stream, x, type, rows, K, bits, span, sum_rows, codes,
         sums, scales, vectors);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
