// What registration takes from torch's CUDA side: the current stream, a device guard, the dispatch key. In the host
// model (tests/cuda/host_model) the same registration serves CPU tensors, in a namespace of its own.

#pragma once

#include "cpu/tensor.h"

#ifdef TORCHCOINFER_HOST_MODEL

#define TORCHCOINFER_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(torchcoinfer_host_model, CPU, m)

namespace torchcoinfer {

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

inline void* current_stream(const Tensor&) {
  return nullptr;
}

inline bool is_beside(const Tensor& tensor, const Tensor&) {
  return tensor.is_cpu();
}

}  // namespace torchcoinfer

#else

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "torch_call.h"

#define TORCHCOINFER_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(torchcoinfer, CUDA, m)

namespace torchcoinfer {

using torch::stable::accelerator::DeviceGuard;

inline void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

inline bool is_beside(const Tensor& tensor, const Tensor& other) {
  return tensor.is_cuda() && tensor.get_device_index() == other.get_device_index();
}

}  // namespace torchcoinfer

#endif
