// Convolution: plain, correct, the truth for faster kernels. A thread computes one value of the output from its patch,
// gathered where it is read; nothing is stored but, for int8 activations, the absolute maximum of each patch.

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;
constexpr float CODE_TOP = 127.f;

// Row = pixel of the output; the columns of a group's outputs see its channels, in the order channel, kernel row,
// kernel column.
struct Patches {
  ConvShape s;
  const void* x;
  Element type;

  __device__ int64_t columns() const {
    return s.channels / s.groups * s.kernel[0] * s.kernel[1];
  }
  // x under column k of the patch at `row`; 0 in the padding and beyond K.
  __device__ float value(int64_t row, int64_t k, int64_t group) const {
    if (k >= columns()) return 0.f;
    const int64_t pixels = s.out_height * s.out_width, image = row / pixels, pixel = row % pixels;
    const int64_t area = s.kernel[0] * s.kernel[1], channel = group * (s.channels / s.groups) + k / area;
    const int64_t h = pixel / s.out_width * s.stride[0] - s.padding[0] + k % area / s.kernel[1] * s.dilation[0];
    const int64_t v = pixel % s.out_width * s.stride[1] - s.padding[1] + k % s.kernel[1] * s.dilation[1];
    if (h < 0 || h >= s.height || v < 0 || v >= s.width) return 0.f;
    const int64_t place =
        image * s.x_strides[0] + channel * s.x_strides[1] + h * s.x_strides[2] + v * s.x_strides[3];
    return load_element(x, type, place);
  }
};

// A warp takes a patch of a group. NaN where a value is NaN or infinite: so is then the whole pixel's result.
__global__ void patch_maxima(Patches patches, int64_t count, float* maxima) {
  const int lane = threadIdx.x % WARP;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (THREADS / WARP), K = patches.columns();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP; i < count;
       i += step) {
    float largest = 0.f, poison = 0.f;
    for (int64_t k = lane; k < K; k += WARP) {
      const float value = patches.value(i / patches.s.groups, k, i % patches.s.groups);
      largest = fmaxf(largest, fabsf(value));
      if (!isfinite(value)) poison = 1.f;
    }
    largest = warp_maximum(largest);
    poison = warp_maximum(poison);
    if (lane == 0) maxima[i] = poison > 0.f ? __int_as_float(0x7fc00000) : largest;
  }
}

__global__ void convolve(DenseMatrix w, Patches patches, const float* maxima, const float* bias, void* y,
                         Element type, int64_t count) {
  const ConvShape& s = patches.s;
  const int64_t pixels = s.out_height * s.out_width, tiles = ceil_div(w.K, TILE_K);
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < count; i += step) {
    const int64_t column = i / pixels % s.out_channels, row = i / pixels / s.out_channels * pixels + i % pixels;
    const int64_t group = column / (s.out_channels / s.groups), block = column / BLOCK_N;
    const int n = static_cast<int>(column % BLOCK_N);
    const float largest = maxima ? maxima[row * s.groups + group] : 0.f;
    const float inverse = largest > 0.f ? CODE_TOP / largest : 0.f;
    float sum = 0.f;
    for (int64_t k = 0; k < w.K; ++k) {
      const Grid grid = load_grid(w, block, w.group_size ? k / w.group_size : 0, n);
      const int code = dense_code(w, block, tiles, k / TILE_K, n, static_cast<int>(k % TILE_K));
      float value = patches.value(row, k, group);
      if (maxima) value = fminf(fmaxf(rintf(__fmul_rn(value, inverse)), -CODE_TOP), CODE_TOP);
      sum += grid.scale * static_cast<float>(code - grid.zero) * value;
    }
    if (maxima) sum *= largest / CODE_TOP;
    if (bias) sum += bias[column];
    store_element(sum, y, type, i);
  }
}

}  // namespace

const char* quant_conv2d(const DenseMatrix& w, const ConvShape& shape, const void* x, float* maxima, const float* bias,
                         void* y, Element type, void* stream) {
  const int64_t pixels = shape.out_height * shape.out_width, rows = shape.batch * pixels, count = rows * shape.groups;
  if (count == 0 || w.N == 0) return nullptr;
  const Patches patches{shape, x, type};
  if (maxima)
    launch(patch_maxima, grid_size(ceil_div(count, THREADS / WARP), MOST_BLOCKS), THREADS, 0, stream, patches, count,
           maxima);
  const int64_t values = rows * w.N;
  launch(convolve, grid_size(ceil_div(values, THREADS), MOST_BLOCKS), THREADS, 0, stream, w, patches, maxima, bias, y,
         type, values);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
