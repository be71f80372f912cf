// Rows of x as the fast kernels take them.

#include "cuda/fragments.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    pad(const uint16_t* x, int64_t rows, int64_t K, int64_t columns, uint16_t* out) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    for (int64_t k = threadIdx.x; k < columns; k += THREADS) out[row * columns + k] = k < K ? x[row * K + k] : uint16_t{0};
}

}  // namespace

const char* pad_rows(const void* x, int64_t rows, int64_t K, int64_t columns, void* out, void* stream) {
  if (rows == 0 || columns == 0) return nullptr;
  launch(pad, grid_size(rows, MOST_BLOCKS), THREADS, 0, stream, static_cast<const uint16_t*>(x), rows, K, columns,
         static_cast<uint16_t*>(out));
  return launch_error();
}

}  // namespace torchcoinfer::cuda
