// Depthwise and other narrow group convolutions, where a GEMM over 16-row blocks would waste most of its rows.

#pragma once

#include "cpu/quant_conv2d.h"

namespace torchcoinfer {

// Few outputs a group and few columns: sums of codes stay exact in float32 (128 * 127 * 255 < 2^24).
inline bool is_narrow(const ConvShape& shape) {
  return shape.groups > 1 && shape.out_channels / shape.groups < 8 && shape.columns() <= 128;
}

void run_conv2d_narrow(const ConvCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer
