// Rows of x as the fast kernels take them.

#include "cuda/fragments.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;

// Word: an unsigned integer as wide as an element.
template <typename Word>
__global__ void __launch_bounds__(THREADS) pad(const Word* x, int64_t rows, int64_t K, int64_t columns, Word* out) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    for (int64_t k = threadIdx.x; k < columns; k += THREADS) out[row * columns + k] = k < K ? x[row * K + k] : Word{0};
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

}  // namespace torchcoinfer::cuda
