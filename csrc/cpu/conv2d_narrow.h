// Depthwise and other narrow group convolutions, where a GEMM over 16-row blocks would waste most of its rows.

#pragma once

#include <vector>

#include "cpu/quant_conv2d.h"

namespace torchcoinfer {

// Few outputs a group and few columns: sums of codes stay exact in float32 (128 * 127 * 255 < 2^24).
inline bool is_narrow(const ConvShape& shape) {
  return shape.groups > 1 && shape.out_channels / shape.groups < 8 && shape.columns() <= 128;
}

// The weights of a call as plain rows.
struct NarrowWeights {
  std::vector<float> values;  // [O, K]: weights, or code - zero point where activations are coded
  std::vector<float> scales;  // [O, groups of columns]; read where activations are coded
  int64_t group;              // columns of a quantization group
  int64_t groups;

  explicit NarrowWeights(const ConvCall& call);
};

void run_conv2d_narrow(const ConvCall& call, const ParallelFor& parallel);

namespace avx512 {

// The same, position by position of flat planes (conv2d_image.h).
void run_conv2d_narrow(const ConvCall& call, const ParallelFor& parallel);

}  // namespace avx512

}  // namespace torchcoinfer
