// Adds up what blocks that split K left, always in the same order.

#include "cuda/fragments.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    add_splits(const float* partials, int splits, int64_t rows, int64_t N, const float* row_scales, const float* bias,
               void* y, Element type) {
  const int64_t count = rows * N, step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < count; i += step) {
    float sum = 0.f;
#pragma unroll 4
    for (int split = 0; split < splits; ++split) sum += partials[split * count + i];
    if (row_scales) sum *= row_scales[i / N];
    if (bias) sum += bias[i % N];
    store_element(sum, y, type, i);
  }
}

}  // namespace

const char* reduce_splits(const float* partials, int splits, int64_t rows, int64_t N, const float* row_scales,
                          const float* bias, void* y, Element type, void* stream) {
  if (rows == 0 || N == 0) return nullptr;
  launch(add_splits, grid_size(ceil_div(rows * N, THREADS), MOST_BLOCKS), THREADS, 0, stream, partials, splits, rows, N,
         row_scales, bias, y, type);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
