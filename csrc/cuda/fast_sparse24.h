// How a fast 2:4 product is cut into thread blocks, and its launches by survivor width.

#pragma once

#include "cuda/kernels.h"
#include "layout_device.h"

namespace torchcoinfer::cuda {

constexpr int WARPS = 8;  // of a thread block
constexpr int THREADS = WARPS * LANES;
constexpr int STAGES = 3;
constexpr int COLUMNS_AT_ONCE = 2;  // n-blocks of a warp
constexpr int QUAD_K = QUAD * TILE_K;
constexpr int X_PAD = 8;    // elements a row of x in shared memory
constexpr int OUT_PAD = 4;  // floats a row of sums there

struct Cut24 {
  int m_fragments;  // 8 rows of x each, of a warp: 2 or 8
  int m_warps, n_warps, k_warps;
  int splits;     // of K
  int64_t quads;  // of a split
  int64_t groups;  // of n-blocks: thread blocks along N
  int64_t shared_bytes;

  TORCHCOINFER_HOST_DEVICE int row_stride() const {
    return k_warps * QUAD_K + X_PAD;
  }
  TORCHCOINFER_HOST_DEVICE int rows_of_block() const {
    return m_warps * m_fragments * 8;
  }
};

struct Launch24 {
  const SparseMatrix& w;
  Cut24 cut;
  const void* x;
  int64_t columns;  // of x
  int64_t rows;
  const float* row_scales;  // nullptr, or [rows] of x in int8 codes: at most SPARSE24_CODE_ROWS
  const float* bias;
  void* y;
  Element type;
  float* parts;
  void* stream;
};

// Instantiated in fast_sparse24_*.cu.
template <typename T, int BITS>
const char* run_sparse24(const Launch24& all);

}  // namespace torchcoinfer::cuda
