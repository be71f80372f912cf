// One element of a float tensor whose dtype is known at run time; scale and zero point of a row.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "layout.h"

namespace torchcoinfer::cuda {

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

// Scale and zero point of row n of a block in one group.
struct Grid {
  float scale;
  int zero;
};

__device__ inline Grid load_grid(const DenseMatrix& w, int64_t block, int64_t group, int n) {
  const int64_t place = (block * group_count(w.K, w.group_size) + group) * BLOCK_N + n;
  return {load_element(w.scales, w.scale_type, place), w.zeros ? w.zeros[place] : implicit_zero(w.bits)};
}

}  // namespace torchcoinfer::cuda
