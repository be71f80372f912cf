// How a product by wgmma is cut into thread blocks, and its launches by width of codes.

#pragma once

#include "cuda/kernels.h"
#include "layout_device.h"

namespace torchcoinfer::cuda {

constexpr int HOPPER_WARPS = 8, HOPPER_THREADS = HOPPER_WARPS * LANES;
constexpr int HOPPER_BLOCKS = 2;  // n-blocks of a warp
constexpr int HOPPER_COLUMNS = HOPPER_WARPS * HOPPER_BLOCKS * BLOCK_N;

// How the steps of all tiles, tile after tile, fall to thread blocks; a step: one quad of K of a tile.
struct HopperCut {
  int tile_rows;  // of x: 64 or 128
  int quads, row_tiles, column_tiles;
  unsigned blocks;
  bool whole;  // blocks take whole tiles, else equal parts of all steps

  TORCHCOINFER_HOST_DEVICE int tiles() const {
    return row_tiles * column_tiles;
  }
  TORCHCOINFER_HOST_DEVICE int begin(unsigned block) const {
    const int64_t units = whole ? tiles() : static_cast<int64_t>(tiles()) * quads;
    return static_cast<int>(units * block / blocks) * (whole ? quads : 1);
  }
  TORCHCOINFER_HOST_DEVICE int tile_values() const {
    return tile_rows * HOPPER_COLUMNS;
  }
};

struct HopperProblem {
  DenseMatrix w;
  const unsigned char* x;  // by `arrange`, for tiles of the cut
  int64_t rows;
  const float* bias;  // [N] or nullptr
  void* y;
  Element type;
  float* partials;  // [blocks, 2, tile_values]
  HopperCut cut;
};

// Instantiated in fast_hopper_*.cu. `hopper_is_built`: the machine code in use is sm_90a's.
template <int BITS>
void run_hopper(const HopperProblem& p, void* stream);
bool hopper_is_built();

}  // namespace torchcoinfer::cuda
