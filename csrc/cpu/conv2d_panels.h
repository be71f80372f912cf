// Patches of a convolution gathered straight into the panels that the AVX-512 GEMM takes.

#pragma once

#include "cpu/quant_conv2d.h"

namespace torchcoinfer::avx512 {

// All pixels of every image; any number of groups, though narrow ones are better served by conv2d_narrow.h.
void run_conv2d_panels(const ConvCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer::avx512
