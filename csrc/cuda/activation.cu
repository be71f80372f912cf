// The codec of tensors at the cut: the bits of cpu/activation.cpp. Products and sums are rounded one after the other
// (__fmul_rn, __fadd_rn are never fused): both halves must see the same.

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;

// Least value and step of what a thread has seen; comparisons drop NaN, so it is looked for by itself.
struct Extremes {
  float low = INFINITY, high = -INFINITY;
  bool nan = false;

  __device__ void add(float value) {
    low = value < low ? value : low;
    high = value > high ? value : high;
    nan = nan || value != value;
  }
  __device__ void write(float top, float* scale, float* least) const {
    const float quiet = __int_as_float(0x7fc00000);
    *scale = nan ? quiet : __fdiv_rn(__fsub_rn(high, low), top);
    *least = nan ? quiet : low;
  }
};

__global__ void token_range(CodecShape shape, const void* x, Element type, float* scale, float* low) {
  __shared__ float scratch[THREADS / WARP];
  const float top = static_cast<float>((1 << shape.bits) - 1);
  for (int64_t row = blockIdx.x; row < shape.rows; row += gridDim.x) {
    Extremes seen;
    for (int64_t i = threadIdx.x; i < shape.n; i += THREADS) seen.add(load_element(x, type, row * shape.n + i));
    seen.low = -block_maximum(-seen.low, scratch);
    seen.high = block_maximum(seen.high, scratch);
    seen.nan = __syncthreads_or(seen.nan);
    if (threadIdx.x) continue;
    if (shape.n)
      seen.write(top, scale + row, low + row);
    else
      scale[row] = low[row] = 0.f;
  }
}

__global__ void channel_range(CodecShape shape, const void* x, Element type, float* scale, float* low) {
  const float top = static_cast<float>((1 << shape.bits) - 1);
  const int64_t lines = shape.rows * shape.n / shape.channels, step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; c < shape.channels; c += step) {
    Extremes seen;
    for (int64_t line = 0; line < lines; ++line) seen.add(load_element(x, type, line * shape.channels + c));
    if (lines)
      seen.write(top, scale + c, low + c);
    else
      scale[c] = low[c] = 0.f;
  }
}

__device__ int64_t range_place(const CodecShape& shape, int64_t row, int64_t i) {
  return shape.by_token ? row : i % shape.channels;
}

// Eight codes are exactly `bits` bytes: a thread takes eight.
__global__ void encode_eights(CodecShape shape, const void* x, Element type, const float* scale, const float* low,
                              uint8_t* codes) {
  const int64_t eights = ceil_div(shape.n, 8), row_bytes = ceil_div(shape.n * shape.bits, 8);
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  const float top = static_cast<float>((1 << shape.bits) - 1);
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; e < shape.rows * eights; e += step) {
    const int64_t row = e / eights, first = e % eights * 8;
    uint64_t word = 0;
    for (int i = 0; i < 8 && first + i < shape.n; ++i) {
      const int64_t place = range_place(shape, row, first + i);
      const float value = load_element(x, type, row * shape.n + first + i);
      const float code = __fdiv_rn(__fsub_rn(value, low[place]), scale[place]);  // NaN: code 0
      const float clipped = code > 0.f ? (code < top ? code : top) : 0.f;
      word |= static_cast<uint64_t>(rintf(clipped)) << shape.bits * i;
    }
    const int64_t start = first / 8 * shape.bits;
    for (int i = 0; i < shape.bits && start + i < row_bytes; ++i)
      codes[row * row_bytes + start + i] = static_cast<uint8_t>(word >> 8 * i);
  }
}

__global__ void decode_eights(CodecShape shape, const uint8_t* codes, const float* scale, const float* low, void* x,
                              Element type) {
  const int64_t eights = ceil_div(shape.n, 8), row_bytes = ceil_div(shape.n * shape.bits, 8);
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; e < shape.rows * eights; e += step) {
    const int64_t row = e / eights, first = e % eights * 8, start = first / 8 * shape.bits;
    uint64_t word = 0;
    for (int i = 0; i < shape.bits && start + i < row_bytes; ++i)
      word |= static_cast<uint64_t>(codes[row * row_bytes + start + i]) << 8 * i;
    for (int i = 0; i < 8 && first + i < shape.n; ++i) {
      const int64_t place = range_place(shape, row, first + i);
      const float code = static_cast<float>(word >> shape.bits * i & ((1u << shape.bits) - 1u));
      store_element(__fadd_rn(__fmul_rn(scale[place], code), low[place]), x, type, row * shape.n + first + i);
    }
  }
}

unsigned blocks_for(int64_t threads) {
  return grid_size(ceil_div(threads, THREADS), MOST_BLOCKS);
}

}  // namespace

const char* encode(const CodecShape& shape, const void* x, Element type, float* scale, float* low, uint8_t* codes,
                   void* stream) {
  if (shape.by_token && shape.rows)
    launch(token_range, grid_size(shape.rows, MOST_BLOCKS), THREADS, 0, stream, shape, x, type, scale, low);
  else if (!shape.by_token && shape.channels)
    launch(channel_range, blocks_for(shape.channels), THREADS, 0, stream, shape, x, type, scale, low);
  if (shape.rows * shape.n != 0)
    launch(encode_eights, blocks_for(shape.rows * ceil_div(shape.n, 8)), THREADS, 0, stream, shape, x, type, scale, low,
           codes);
  return launch_error();
}

const char* decode(const CodecShape& shape, const uint8_t* codes, const float* scale, const float* low, void* x,
                   Element type, void* stream) {
  if (shape.rows * shape.n == 0) return nullptr;
  launch(decode_eights, blocks_for(shape.rows * ceil_div(shape.n, 8)), THREADS, 0, stream, shape, codes, scale, low, x,
         type);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
