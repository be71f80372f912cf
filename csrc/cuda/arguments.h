// What the register*.cpp files share: tensors to the kernels' arguments, checks, flags.

#pragma once

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "layout_device.h"
#include "packed_arguments.h"

namespace torchcoinfer {

inline cuda::Element element(Dtype dtype) {
  return dtype == Dtype::float32   ? cuda::Element::float32
         : dtype == Dtype::float16 ? cuda::Element::float16
                                   : cuda::Element::bfloat16;
}

inline void check_launch(const Checker& checks, const char* error) {
  check(error == nullptr, checks.op, "device", "a launch without error", error ? error : "");
}

inline void same_device(const Checker& checks, const char* argument, const Tensor& tensor, const Tensor& as) {
  check(is_beside(tensor, as), checks.op, argument, "a tensor on the CUDA device of the other arguments",
        "another device");
}

inline void check_layout(const Checker& checks, int64_t layout) {
  const bool known = layout == CANONICAL_LAYOUT || layout == DEVICE_LAYOUT;
  check(known, checks.op, "layout", "0 (canonical) or 1 (device order)", layout);
}

inline void check_activation_bits(const Checker& checks, int64_t activation_bits) {
  const bool known = activation_bits == 0 || activation_bits == 8;
  check(known, checks.op, "activation_bits", "0 (weight-only) or 8", activation_bits);
}

inline Tensor empty_beside(const Tensor& as, const std::vector<int64_t>& size, ScalarType dtype) {
  return torch::stable::new_empty(as, {size.data(), size.size()}, dtype);
}

// A flag in device memory that kernels raise where an argument is refused; reading it waits for the stream.
class Flag {
 public:
  explicit Flag(const Tensor& as) : memory_(empty_beside(as, {1}, ScalarType::Int)), stream_(current_stream(as)) {}
  int32_t* place() const {
    return mutable_data<int32_t>(memory_);
  }
  bool raised(const Checker& checks) const {
    int32_t value = 0;
    check_launch(checks, cuda::read_memory(&value, place(), sizeof value, stream_));
    return value != 0;
  }

 private:
  Tensor memory_;
  void* stream_;
};

// Scales and zero points [NB, G, 16] of a matrix, checked, into it.
template <typename Matrix>
void set_grid(const Checker& checks, const Tensor& scales, const std::optional<Tensor>& zeros, int64_t group_size,
              const Tensor& as, Matrix* matrix) {
  const bool asymmetric = check_grid(checks, scales, zeros, group_size, matrix->N, matrix->K);
  same_device(checks, "scales", scales, as);
  matrix->group_size = group_size;
  matrix->scale_type = element(checks.floating("scales", scales));
  matrix->scales = scales.const_data_ptr();
  if (!asymmetric) return;
  same_device(checks, "zeros", *zeros, as);
  matrix->zeros = data<uint8_t>(*zeros);
}

// The bias as float32 [N] beside the weight; without one a tensor that `bias_data` takes for none.
inline Tensor bias_values(const Checker& checks, const std::optional<Tensor>& bias, int64_t N, const Tensor& as) {
  if (!bias.has_value()) return empty_beside(as, {0}, ScalarType::Float);
  checks.floating("bias", *bias);
  checks.shape("bias", *bias, {N});
  same_device(checks, "bias", *bias, as);
  return torch::stable::contiguous(torch::stable::to(*bias, ScalarType::Float));
}

inline const float* bias_data(const Tensor& values) {
  return values.numel() ? data<float>(values) : nullptr;
}

// Rows of x [..., K] as the plain linear kernels take them, and y [..., N].
struct LinearRows {
  Tensor x, y, values, scales;
  int64_t rows = 1;
  Dtype dtype;

  const float* row_scales() const {
    return scales.numel() ? data<float>(scales) : nullptr;
  }
};

inline LinearRows linear_rows(const Checker& checks, const Tensor& x, int64_t N, int64_t activation_bits) {
  LinearRows result;
  result.dtype = checks.floating("x", x);
  result.x = torch::stable::contiguous(x);
  std::vector<int64_t> size;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) {
    size.push_back(x.size(i));
    result.rows *= x.size(i);
  }
  size.push_back(N);
  const int64_t K = x.size(-1);
  result.y = empty_beside(x, size, x.scalar_type());
  result.values = empty_beside(x, {result.rows, ceil_div(K, TILE_K) * TILE_K}, ScalarType::Float);
  result.scales = empty_beside(x, {activation_bits ? result.rows : 0}, ScalarType::Float);
  const void* source = result.x.const_data_ptr();
  float* values = mutable_data<float>(result.values);
  void* stream = current_stream(x);
  const cuda::Element type = element(result.dtype);
  check_launch(checks, activation_bits
                           ? cuda::code_rows(source, type, result.rows, K, result.values.size(1), values,
                                             cuda::Element::float32, mutable_data<float>(result.scales), stream)
                           : cuda::float_rows(source, type, result.rows, K, values, stream));
  return result;
}

}  // namespace torchcoinfer
