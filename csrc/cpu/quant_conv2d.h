// Convolution as a packed GEMM over patches that are gathered block by block, never the whole im2col. No torch header.

#pragma once

#include "cpu/quant_linear.h"

namespace torchcoinfer {

struct ConvShape {
  int64_t batch, channels, height, width;  // of x
  int64_t out_channels, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t groups;

  int64_t group_channels() const {
    return channels / groups;
  }
  int64_t columns() const {  // K
    return group_channels() * kernel[0] * kernel[1];
  }
  int64_t pixels() const {
    return out_height * out_width;
  }
};

struct ConvCall {
  QuantMatrix weight;  // [O, (C / groups) * kh * kw]
  ConvShape shape;
  const void* x;  // element (b, c, h, w) at the sum of index * x_strides
  int64_t x_strides[4];
  Dtype dtype;  // of x and y
  int activation_bits;
  void* y;            // [B, O, H', W'] contiguous
  const float* bias;  // [O] or nullptr
  Isa isa;
};

void run_conv2d(const ConvCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer
