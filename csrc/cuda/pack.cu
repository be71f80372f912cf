// Packing, unpacking and quantizing of the dense format, one thread a code. Threads share bytes: codes are ored in.

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;

__global__ void pack(const uint8_t* codes, int bits, int64_t N, int64_t K, uint8_t* packed, int32_t* flag) {
  const int64_t tiles = ceil_div(K, TILE_K), step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < N * K; i += step) {
    const int64_t row = i / K, column = i % K;
    const int code = codes[i];
    if (code >> bits) atomicOr(flag, 1);
    uint8_t* tile = packed + (row / BLOCK_N * tiles + column / TILE_K) * tile_bytes(bits);
    or_tile_code(tile, bits, static_cast<int>(row % BLOCK_N), static_cast<int>(column % TILE_K), code);
  }
}

__global__ void unpack(const uint8_t* packed, int bits, int64_t N, int64_t K, uint8_t* codes) {
  const int64_t tiles = ceil_div(K, TILE_K), step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < N * K; i += step) {
    const int64_t row = i / K, column = i % K;
    const uint8_t* tile = packed + (row / BLOCK_N * tiles + column / TILE_K) * tile_bytes(bits);
    codes[i] = static_cast<uint8_t>(
        tile_code(tile, bits, static_cast<int>(row % BLOCK_N), static_cast<int>(column % TILE_K)));
  }
}

struct Quantized {
  uint8_t* packed;
  void* scales;
  uint8_t* zeros;
  Element scale_type;
};

// The stored scale and the zero point for the extremes of a group.
__device__ Grid choose_grid(float low, float high, int bits, bool symmetric, Element scale_type) {
  const float top = static_cast<float>((1 << bits) - 1);
  const float wide =
      symmetric ? fmaxf(-low, high) / static_cast<float>(implicit_zero(bits) - 1) : (high - low) / top;
  const float scale = as_stored(wide, scale_type);
  if (symmetric) return {scale, implicit_zero(bits)};
  const float zero = scale > 0.f ? rintf(-low / scale) : 0.f;
  return {scale, static_cast<int>(fminf(fmaxf(zero, 0.f), top))};
}

// A warp takes a group of a row.
__global__ void quantize(const void* weight, Element type, int bits, int64_t group_size, int64_t N, int64_t K,
                         Quantized out, int32_t* flag) {
  const int lane = threadIdx.x % WARP;
  const int64_t groups = group_count(K, group_size), length = group_size ? group_size : K, tiles = ceil_div(K, TILE_K);
  const int64_t step = static_cast<int64_t>(gridDim.x) * (THREADS / WARP);
  const float top = static_cast<float>((1 << bits) - 1);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP; i < N * groups; i += step) {
    const int64_t row = i / groups, group = i % groups, begin = group * length;
    const int64_t end = begin + length < K ? begin + length : K;
    const int n = static_cast<int>(row % BLOCK_N);
    float low = 0.f, high = 0.f;
    bool finite = true;
    for (int64_t k = begin + lane; k < end; k += WARP) {
      const float value = load_element(weight, type, row * K + k);
      finite = finite && isfinite(value);
      low = fminf(low, value);
      high = fmaxf(high, value);
    }
    low = -warp_maximum(-low);
    high = warp_maximum(high);
    const Grid grid = choose_grid(low, high, bits, out.zeros == nullptr, out.scale_type);
    if (!finite || !isfinite(grid.scale)) atomicOr(flag, 1);
    if (lane == 0) {
      const int64_t place = (row / BLOCK_N * groups + group) * BLOCK_N + n;
      store_element(grid.scale, out.scales, out.scale_type, place);
      if (out.zeros) out.zeros[place] = static_cast<uint8_t>(grid.zero);
    }
    for (int64_t k = begin + lane; k < end; k += WARP) {
      const float value = load_element(weight, type, row * K + k);
      const float steps = grid.scale > 0.f ? rintf(value / grid.scale) : 0.f;
      const float code = fminf(fmaxf(steps + static_cast<float>(grid.zero), 0.f), top);
      uint8_t* tile = out.packed + (row / BLOCK_N * tiles + k / TILE_K) * tile_bytes(bits);
      or_tile_code(tile, bits, n, static_cast<int>(k % TILE_K), static_cast<int>(code));
    }
  }
}

}  // namespace

const char* pack_codes(const uint8_t* codes, int bits, int64_t N, int64_t K, uint8_t* packed, int32_t* flag,
                       void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t bytes = ceil_div(N, BLOCK_N) * ceil_div(K, TILE_K) * tile_bytes(bits);
  cudaMemsetAsync(flag, 0, sizeof *flag, queue);
  if (bytes == 0) return launch_error();
  cudaMemsetAsync(packed, 0, bytes, queue);
  launch(pack, grid_size(ceil_div(N * K, THREADS), MOST_BLOCKS), THREADS, 0, stream, codes, bits, N, K, packed, flag);
  return launch_error();
}

const char* unpack_codes(const uint8_t* packed, int bits, int64_t N, int64_t K, uint8_t* codes, void* stream) {
  if (N * K == 0) return nullptr;
  launch(unpack, grid_size(ceil_div(N * K, THREADS), MOST_BLOCKS), THREADS, 0, stream, packed, bits, N, K, codes);
  return launch_error();
}

const char* quantize_pack(const void* weight, Element type, int bits, int64_t group_size, int64_t N, int64_t K,
                          uint8_t* packed, void* scales, uint8_t* zeros, Element scale_type, int32_t* flag,
                          void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t blocks = ceil_div(N, BLOCK_N), places = blocks * group_count(K, group_size) * BLOCK_N;
  const int64_t bytes = blocks * ceil_div(K, TILE_K) * tile_bytes(bits);
  cudaMemsetAsync(flag, 0, sizeof *flag, queue);
  if (places) cudaMemsetAsync(scales, 0, places * (scale_type == Element::float32 ? 4 : 2), queue);
  if (places && zeros) cudaMemsetAsync(zeros, 0, places, queue);
  if (bytes) cudaMemsetAsync(packed, 0, bytes, queue);
  const int64_t warps = N * group_count(K, group_size);
  if (warps == 0) return launch_error();
  launch(quantize, grid_size(ceil_div(warps, THREADS / WARP), MOST_BLOCKS), THREADS, 0, stream, weight, type, bits,
         group_size, N, K, Quantized{packed, scales, zeros, scale_type}, flag);
  return launch_error();
}

const char* read_memory(void* host, const void* device, int64_t bytes, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, queue);
  cudaStreamSynchronize(queue);
  return launch_error();
}

const char* write_memory(void* device, const void* host, int64_t bytes, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, queue);
  cudaStreamSynchronize(queue);  // host memory may be gone after this call
  return launch_error();
}

}  // namespace torchcoinfer::cuda
