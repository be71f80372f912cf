// Convolutions on AVX-512: patches of a tile of positions (conv2d_image.h) are gathered into panels, lane = position,
// then multiplied with broadcast weights, so that results are stored along the rows of y.

#pragma once

#include "cpu/conv2d_image.h"

#if TORCHCOINFER_X86

#include "cpu/store_avx512.h"

namespace torchcoinfer::avx512 {

constexpr int TILE_VECTORS = 3;                           // of 16 positions
constexpr int64_t TILE_POSITIONS = 16 * TILE_VECTORS;

// What fills the 32-bit lanes of panels and decoded weights: one float; a pair of bfloat16 (k0 k2, then k1 k3 of every
// four columns); four codes, those of x with 128 added, those of weights signed.
struct FloatKind {
  static constexpr int K_EACH = 1;
  using Sum = __m512;
};
struct PairKind {
  static constexpr int K_EACH = 2;
  using Sum = __m512;
};
struct CodeKind {
  static constexpr int K_EACH = 4;
  using Sum = __m512i;
};

// Patches of one image and group.
struct PatchSource {
  const float* x;                      // the group's first plane
  const std::vector<int64_t>& taps;    // [K], distances from the position
  const int32_t* largest;              // bits of the largest magnitude of all channels; codes only
  const std::vector<int64_t>& window;  // distances in `largest`
  const Segments& segments;
  int64_t positions;
  bool sums;  // whether sums are wanted; codes always have them
};

// Positions [first, first + 16 * vectors), lanes beyond `positions` are zeros.
struct PositionTile {
  int64_t first;
  int vectors;
};

struct Panel {
  int32_t* lanes;  // [KT * 32 / K_EACH][48]
  void* sums;      // [S][48] float, or int32 of codes
  float* scales;   // [48], codes only: x = scale * code; NaN where a patch is not finite
};

// Stores those of 16 positions that are pixels; `plane`: the index in y of the plane's first pixel.
TORCHCOINFER_AVX512_INLINE void store_pixels(__m512 values, const PixelRun& run, const Output& out, int64_t plane) {
  const auto mask = static_cast<__mmask16>((1u << __builtin_popcount(run.positions)) - 1);
  store_lanes(_mm512_maskz_compress_ps(static_cast<__mmask16>(run.positions), values), out, plane + run.pixel, mask);
}

template <typename Kind>
void gather_panel(const PatchSource& source, const PositionTile& tile, const Panel& panel);

// All pixels of every image; any number of groups, though narrow ones are better served by conv2d_narrow.h.
void run_conv2d_panels(const ConvCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer::avx512

#endif
