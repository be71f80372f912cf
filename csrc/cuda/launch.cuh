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

// On Hopper: a kernel that may start while the one before it ends, and calls `await_kernel_before` (hopper.cuh) before it
// reads what that one wrote. A kernel so launched is itself awaited whole by those that are not.
template <typename... Parameters, typename... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                  Arguments&&... arguments) {
  if (shared_bytes > (48 << 10))
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream), config.attrs = &early, config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
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

template <typename... Parameters, typename... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                  Arguments&&... arguments) {
  launch(kernel, grid, block, shared_bytes, stream, std::forward<Arguments>(arguments)...);
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
