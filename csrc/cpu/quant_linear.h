// One whole linear call: prepares x, picks the kernel, splits the work. No torch header.

#pragma once

#include <functional>

#include "cpu/rows.h"

namespace torchcoinfer {

// Runs body(begin, end) over parts of [0, count), `grain` at least each, on the caller's threads.
using ParallelFor =
    std::function<void(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body)>;

struct LinearCall {
  QuantMatrix weight;
  SourceRows x;
  int64_t rows;         // of x
  int activation_bits;  // 0 or 8
  Output out;
  Isa isa;
};

// y = x W^T + bias for the columns [out.first, out.last).
void run_linear(const LinearCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer
