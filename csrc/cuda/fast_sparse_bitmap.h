// The launches of the fast bitmap kernels, by survivor width.

#pragma once

#include "cuda/kernels.h"

namespace torchcoinfer::cuda {

constexpr int MOST_WARPS = 16;  // of a thread block

struct LaunchBitmap {
  const SparseMatrix& w;
  int warps;
  const void* x;  // nullptr: y is the weight [N, K]
  int64_t columns;  // of x
  int64_t rows;
  const float* row_scales;  // [rows] or nullptr
  const float* bias;        // [N] or nullptr
  void* y;
  void* stream;
};

// Instantiated in fast_sparse_bitmap_*.cu.
template <typename T, int BITS>
const char* run_bitmap(const LaunchBitmap& all);

// y: dense codes of 8 bits (kernels.h, expand_codes).
template <int BITS>
const char* run_expand(const LaunchBitmap& all);

}  // namespace torchcoinfer::cuda
