// Kernel launches and dynamic shared memory. Kernels are launched here and nowhere else, so that the same sources run
// on the host under tests/cuda/host_model.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

namespace torchcoinfer::cuda {

#ifdef __CUDACC__

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            Arguments&&... arguments) {
  if (shared_bytes > (48 << 10))  // beyond what every GPU gives unasked
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(std::forward<Arguments>(arguments)...);
}

__device__ __forceinline__ void* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char torchcoinfer_dynamic_shared[];
  return torchcoinfer_dynamic_shared;
}

#else

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void*,
            Arguments&&... arguments) {
  host_model::run_grid(grid, block, shared_bytes, [&] { kernel(arguments...); });
}

inline void* dynamic_shared() {
  return host_model::dynamic_shared_memory();
}

#endif

// nullptr, or why the launches before failed.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline unsigned grid_size(int64_t count, int64_t most) {
  return static_cast<unsigned>(count < most ? count : most);
}

constexpr int64_t MOST_BLOCKS = 1 << 20;  // kernels walk what is beyond

}  // namespace torchcoinfer::cuda
