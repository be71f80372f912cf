// One element of a float tensor whose dtype is known at run time; one code of a packed tensor; scale and zero point of
// a row; reductions over a thread block.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "layout_device.h"

namespace torchcoinfer::cuda {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ inline float load_element(const void* data, Element type, int64_t index) {
  if (type == Element::float32) return static_cast<const float*>(data)[index];
  if (type == Element::float16) return __half2float(static_cast<const __half*>(data)[index]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
}

__device__ inline void store_element(float value, void* data, Element type, int64_t index) {
  if (type == Element::float32)
    static_cast<float*>(data)[index] = value;
  else if (type == Element::float16)
    static_cast<__half*>(data)[index] = __float2half_rn(value);
  else
    static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(value);
}

// The value as it is stored in the type.
__device__ inline float as_stored(float value, Element type) {
  if (type == Element::float32) return value;
  if (type == Element::float16) return __half2float(__float2half_rn(value));
  return __bfloat162float(__float2bfloat16_rn(value));
}

// Scale and zero point of row n of a block in one group.
struct Grid {
  float scale;
  int zero;
};

template <typename Matrix>
__device__ inline Grid load_grid(const Matrix& w, int64_t block, int64_t group, int n) {
  const int64_t place = (block * group_count(w.K, w.group_size) + group) * BLOCK_N + n;
  return {load_element(w.scales, w.scale_type, place), w.zeros ? w.zeros[place] : implicit_zero(w.bits)};
}

// Code (n, k) of a tile, in either layout.
__device__ inline int dense_code(const DenseMatrix& w, int64_t block, int64_t tiles, int64_t tile, int n, int k) {
  const uint8_t* of_block = w.packed + block * tiles * tile_bytes(w.bits);
  return w.layout == DEVICE_LAYOUT ? device_code(of_block, w.bits, tiles, tile, n, k)
                                   : tile_code(of_block + tile * tile_bytes(w.bits), w.bits, n, k);
}

// Ors a byte into a buffer that other threads change too. The buffer begins at a multiple of 4.
__device__ inline void or_byte(uint8_t* buffer, int64_t byte, int value) {
  atomicOr(reinterpret_cast<unsigned*>(buffer) + byte / 4, static_cast<unsigned>(value) << 8 * (byte % 4));
}

__device__ inline void or_tile_code(uint8_t* tile, int bits, int n, int k, int code) {
  for (int index = 0; index < plane_count(bits); ++index) {
    const Plane p = plane(bits, index);
    const Field field = field_of(p.bits, n, k);
    or_byte(tile, p.offset + field.byte, (code >> p.shift & ((1 << p.bits) - 1)) << field.shift);
  }
}

__device__ inline void or_chunk_code(uint8_t* chunk, int bits, int i, int code) {
  for (int index = 0; index < plane_count(bits); ++index) {
    const Plane p = plane(bits, index);
    const int bytes = 8 * p.bits;
    or_byte(chunk, 8 * p.shift + i % bytes, (code >> p.shift & ((1 << p.bits) - 1)) << p.bits * (i / bytes));
  }
}

__device__ inline float warp_maximum(float value) {
  for (int step = WARP / 2; step; step /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step));
  return value;
}

// The largest value that any thread of the block holds; scratch: shared, a float a warp.
__device__ inline float block_maximum(float value, float* scratch) {
  const int warps = static_cast<int>(blockDim.x) / WARP;
  value = warp_maximum(value);
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
  __syncthreads();
  for (int i = 0; i < warps; ++i) value = fmaxf(value, scratch[i]);
  __syncthreads();  // scratch may be written again
  return value;
}

}  // namespace torchcoinfer::cuda
