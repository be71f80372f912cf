// Patches of a convolution as rows of a matrix, so that the linear layers' kernels serve it.

#include "cuda/fragments.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;

// Row: a pixel of the output of images `first`, `first` + 1, ..; columns: channel, kernel row, kernel column. Neighboring
// threads write neighboring columns. Word: an unsigned integer as wide as an element.
template <typename Word>
__global__ void __launch_bounds__(THREADS) gather(ConvShape s, const Word* x, int64_t first, int64_t rows, Word* patches) {
  const int kernel_width = static_cast<int>(s.kernel[1]), area = static_cast<int>(s.kernel[0] * s.kernel[1]);
  const int columns = static_cast<int>(s.channels) * area;
  const int64_t pixels = s.out_height * s.out_width;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t image = first + row / pixels, pixel = row % pixels;
    const int64_t top = pixel / s.out_width * s.stride[0] - s.padding[0];
    const int64_t left = pixel % s.out_width * s.stride[1] - s.padding[1];
    const Word* of_image = x + image * s.x_strides[0];
    for (int k = static_cast<int>(threadIdx.x); k < columns; k += THREADS) {
      const int channel = k / area, in_area = k % area;
      const int64_t h = top + in_area / kernel_width * s.dilation[0], v = left + in_area % kernel_width * s.dilation[1];
      const bool inside = h >= 0 && h < s.height && v >= 0 && v < s.width;
      patches[row * columns + k] =
          inside ? of_image[channel * s.x_strides[1] + h * s.x_strides[2] + v * s.x_strides[3]] : Word{0};
    }
  }
}

}  // namespace

const char* gather_patches(const ConvShape& shape, const void* x, Element type, int64_t first, int64_t images,
                           void* patches, void* stream) {
  const int64_t rows = images * shape.out_height * shape.out_width;
  if (rows == 0) return nullptr;
  const unsigned grid = grid_size(rows, MOST_BLOCKS);
  if (type == Element::float32)
    launch(gather<uint32_t>, grid, THREADS, 0, stream, shape, static_cast<const uint32_t*>(x), first, rows,
           static_cast<uint32_t*>(patches));
  else
    launch(gather<uint16_t>, grid, THREADS, 0, stream, shape, static_cast<const uint16_t*>(x), first, rows,
           static_cast<uint16_t*>(patches));
  return launch_error();
}

}  // namespace torchcoinfer::cuda
