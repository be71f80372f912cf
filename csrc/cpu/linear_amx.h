// A linear call on the int8 tiles of AMX: x as the digits of AVX-512 (digits_avx512.h), the sums of each segment by
// tdpbsud, scaled and stored as there, so that results are bit for bit those of avx512.
//
// Floats take int8 tiles too: two digits of a 16-bit dtype cost as many cycles as one bfloat16 tile of the same columns,
// need half the bytes of decoded weights, and serve float16 and, with a third, float32.

#pragma once

#include "cpu/quant_linear.h"

namespace torchcoinfer::amx {

// More rows than one row tile of AVX-512, which streams the weights once and is bound by memory.
bool serves(const LinearCall& call);
void run_linear(const LinearCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer::amx
