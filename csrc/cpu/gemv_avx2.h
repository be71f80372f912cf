// Few rows of x on AVX2: their digits (as on AVX-512: digits_avx512.h) times codes that are decoded in registers.

#pragma once

#include "cpu/quant_linear.h"

namespace torchcoinfer::avx2 {

// Up to six digit rows: int8 activations take one each, 16-bit floats two, float32 three.
bool are_few(const LinearCall& call);
void run_few(const LinearCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer::avx2
