// Which kernels run a convolution, and why: beside dense_paths.h the one place that decides. What has no fast way takes
// the plain kernel.

#pragma once

#include "cuda/dense_paths.h"

namespace torchcoinfer {

enum class ConvPath { plain, decoded, patches };

inline ConvPath conv_path(const cuda::DenseMatrix& w, const cuda::ConvShape& s, Dtype x, int64_t activation_bits) {
  // Nothing to multiply.
  if (s.batch == 0 || w.N == 0 || w.K == 0) return ConvPath::plain;
  // The weight of a convolution is small beside what it is applied to: decoding costs little, and torch's kernels gather
  // patches where they multiply. float32 not: they would round it to 10 bits by default.
  if (!activation_bits && x != Dtype::float32) return ConvPath::decoded;
  // Each patch is rounded by itself, or multiplied in float32: as rows of a matrix. Groups would be a matrix each.
  if (s.groups == 1 && w.layout == DEVICE_LAYOUT) return ConvPath::patches;
  return ConvPath::plain;
}

constexpr int64_t MOST_PATCH_BYTES = int64_t{256} << 20;  // under way; more images take turns

inline Tensor decoded_conv2d(const Checker& checks, const cuda::DenseMatrix& w, const cuda::ConvShape& s, const Tensor& x,
                             Dtype dtype, const std::optional<Tensor>& bias) {
  Tensor weight = empty_beside(x, {w.N, s.channels / s.groups, s.kernel[0], s.kernel[1]}, x.scalar_type());
  const bool vectors = w.layout == DEVICE_LAYOUT && w.K % 8 == 0 && is_vector_aligned(w.packed);
  void* target = weight.mutable_data_ptr();
  check_launch(checks, vectors ? cuda::decode_weight(w, element(dtype), w.K, target, current_stream(x))
                               : cuda::dequantize(w, target, element(dtype), current_stream(x)));
  std::optional<Tensor> beside;
  if (bias.has_value()) beside = torch::stable::to(*bias, x.scalar_type());
  const auto pair = [](const int64_t(&values)[2]) {
    return torch::stable::detail::from(torch::headeronly::IntHeaderOnlyArrayRef(values, 2));
  };
  std::array<StableIValue, 7> stack{torch::stable::detail::from(x),
                                    torch::stable::detail::from(weight),
                                    torch::stable::detail::from(beside),
                                    pair(s.stride),
                                    pair(s.padding),
                                    pair(s.dilation),
                                    torch::stable::detail::from(s.groups)};
  call_torch("aten::conv2d", stack.data());
  const Tensor y = torch::stable::detail::to<Tensor>(stack[0]);
  // the op's result is contiguous whatever x is; autocast takes part in calls through the dispatcher
  return torch::stable::contiguous(torch::stable::to(y, x.scalar_type()));
}

// By the linear layer, patch by patch: [images, pixels, outputs], which y has the other way round.
inline std::optional<Tensor> patch_conv2d(const Checker& checks, const cuda::DenseMatrix& w, const cuda::ConvShape& s,
                                          const Tensor& x, Dtype dtype, const std::optional<Tensor>& bias,
                                          int64_t activation_bits) {
  const int64_t pixels = s.out_height * s.out_width, of_image = pixels * w.K * (dtype == Dtype::float32 ? 4 : 2);
  const int64_t fitting = MOST_PATCH_BYTES / of_image, at_once = std::min(std::max(fitting, int64_t{1}), s.batch);
  Tensor y = empty_beside(x, {s.batch, w.N, pixels}, x.scalar_type());
  for (int64_t first = 0; first < s.batch; first += at_once) {
    const int64_t images = std::min(at_once, s.batch - first);
    Tensor patches = empty_beside(x, {images, pixels, w.K}, x.scalar_type());
    check_launch(checks, cuda::gather_patches(s, x.const_data_ptr(), element(dtype), first, images,
                                              patches.mutable_data_ptr(), current_stream(x)));
    const std::optional<Tensor> rows = fast_linear(checks, w, patches, bias, activation_bits);
    if (!rows.has_value()) return std::nullopt;
    Tensor part = torch::stable::narrow(y, 0, first, images);
    torch::stable::copy_(part, torch::stable::transpose(*rows, 1, 2));
  }
  const std::vector<int64_t> size{s.batch, w.N, s.out_height, s.out_width};
  return torch::stable::reshape(y, {size.data(), size.size()});
}

// The convolution by a fast way; nothing where only the plain kernel serves it.
inline std::optional<Tensor> fast_conv2d(const Checker& checks, const cuda::DenseMatrix& w, const cuda::ConvShape& s,
                                         const Tensor& x, const std::optional<Tensor>& bias, int64_t activation_bits) {
  const Dtype dtype = checks.floating("x", x);
  const ConvPath path = conv_path(w, s, dtype, activation_bits);
  if (path == ConvPath::decoded) return decoded_conv2d(checks, w, s, x, dtype, bias);
  if (path == ConvPath::patches) return patch_conv2d(checks, w, s, x, dtype, bias, activation_bits);
  return std::nullopt;
}

}  // namespace torchcoinfer
