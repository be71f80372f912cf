// Rows of x as the linear kernel takes them: float32, padded to whole tiles, rounded to int8 codes if asked.

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;
constexpr float CODE_TOP = 127.f;

__global__ void convert(const void* x, Element type, int64_t rows, int64_t K, int64_t stride, float* values) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    for (int64_t k = threadIdx.x; k < stride; k += THREADS)
      values[row * stride + k] = k < K ? load_element(x, type, row * K + k) : 0.f;
}

__global__ void quantize(const void* x, Element type, int64_t rows, int64_t K, int64_t columns, void* codes,
                         Element code_type, float* scales) {
  __shared__ float scratch[THREADS / WARP];
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float largest = 0.f;
    bool finite = true;
    for (int64_t k = threadIdx.x; k < K; k += THREADS) {
      const float value = load_element(x, type, row * K + k);
      largest = fmaxf(largest, fabsf(value));
      finite = finite && isfinite(value);
    }
    largest = block_maximum(largest, scratch);
    finite = __syncthreads_and(finite);
    const float inverse = largest > 0.f ? CODE_TOP / largest : 0.f;
    if (threadIdx.x == 0) scales[row] = finite ? largest / CODE_TOP : __int_as_float(0x7fc00000);
    for (int64_t k = threadIdx.x; k < columns; k += THREADS) {
      const float code = k < K ? rintf(__fmul_rn(load_element(x, type, row * K + k), inverse)) : 0.f;
      store_element(fminf(fmaxf(code, -CODE_TOP), CODE_TOP), codes, code_type, row * columns + k);
    }
  }
}

__global__ void to_static_codes(const void* x, Element type, int64_t rows, int64_t K, const float* scales, void* out) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    for (int64_t k = threadIdx.x; k < K; k += THREADS) {
      const float code = rintf(load_element(x, type, row * K + k) / scales[k]);
      const float low = code < -CODE_TOP ? -CODE_TOP : code;  // NaN stays
      store_element(low > CODE_TOP ? CODE_TOP : low, out, type, row * K + k);
    }
}

}  // namespace

const char* static_codes(const void* x, Element type, int64_t rows, int64_t K, const float* scales, void* out,
                         void* stream) {
  if (rows == 0 || K == 0) return nullptr;
  launch(to_static_codes, grid_size(rows, MOST_BLOCKS), THREADS, 0, stream, x, type, rows, K, scales, out);
  return launch_error();
}

const char* float_rows(const void* x, Element type, int64_t rows, int64_t K, float* values, void* stream) {
  const int64_t stride = ceil_div(K, TILE_K) * TILE_K;
  if (rows == 0 || stride == 0) return nullptr;
  launch(convert, grid_size(rows, MOST_BLOCKS), THREADS, 0, stream, x, type, rows, K, stride, values);
  return launch_error();
}

const char* code_rows(const void* x, Element type, int64_t rows, int64_t K, int64_t columns, void* codes,
                      Element code_type, float* scales, void* stream) {
  if (rows == 0) return nullptr;
  launch(quantize, grid_size(rows, MOST_BLOCKS), THREADS, 0, stream, x, type, rows, K, columns, codes, code_type,
         scales);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
