// The tile instructions of AMX (csrc/cpu/tiles_amx.h) in plain C++, from their descriptions in the Intel 64 and IA-32
// Architectures Software Developer's Manual, volume 2: where the hardware raises an exception, the model ends the
// program. Kernels are built against it with -DTORCHCOINFER_TILES='"tile_model.h"'.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace torchcoinfer {

struct TileModel {
  static constexpr int TILES = 8, MOST_ROWS = 16, MOST_BYTES = 64;
  bool configured = false;
  TileConfig config;
  uint8_t data[TILES][MOST_ROWS][MOST_BYTES] = {};

  void require(bool holds, const char* what) const {
    if (holds) return;
    std::fprintf(stderr, "tile model: %s\n", what);
    std::abort();
  }
  void require_tile(int tile) const {
    require(configured, "no configuration is loaded");
    require(tile >= 0 && tile < TILES && config.rows[tile] && config.row_bytes[tile], "the tile is not configured");
  }
  // Writing a tile zeroes what lies beyond its shape.
  void clear(int tile) {
    std::memset(data[tile], 0, sizeof data[tile]);
  }
};
inline thread_local TileModel tile_model;

inline bool tiles_available() {
  return true;
}

inline void ldtilecfg(const TileConfig& config) {
  TileModel& model = tile_model;
  model.require(config.palette == 1 && config.start_row == 0, "palette 1 and start row 0 expected");
  for (uint8_t byte : config.reserved) model.require(byte == 0, "a reserved byte is not 0");
  for (int i = 0; i < 16; ++i) {
    const bool valid = i < TileModel::TILES ? config.rows[i] <= 16 && config.row_bytes[i] <= 64 &&
                                                  !config.rows[i] == !config.row_bytes[i]
                                            : !config.rows[i] && !config.row_bytes[i];
    model.require(valid, "a tile's shape is not supported");
  }
  model = TileModel{};
  model.configured = true;
  model.config = config;
}

inline void tilerelease() {
  tile_model = TileModel{};
}

template <int TILE>
inline void tilezero() {
  tile_model.require_tile(TILE);
  tile_model.clear(TILE);
}

template <int TILE>
inline void tileloadd(const void* base, int64_t stride) {
  TileModel& model = tile_model;
  model.require_tile(TILE);
  model.clear(TILE);
  for (int i = 0; i < model.config.rows[TILE]; ++i)
    std::memcpy(model.data[TILE][i], static_cast<const char*>(base) + i * stride, model.config.row_bytes[TILE]);
}

template <int TILE>
inline void tilestored(void* base, int64_t stride) {
  TileModel& model = tile_model;
  model.require_tile(TILE);
  for (int i = 0; i < model.config.rows[TILE]; ++i)
    std::memcpy(static_cast<char*>(base) + i * stride, model.data[TILE][i], model.config.row_bytes[TILE]);
}

template <int SUMS, int A, int B>
inline void tdpbsud() {
  TileModel& model = tile_model;
  for (int tile : {SUMS, A, B}) model.require_tile(tile);
  const TileConfig& config = model.config;
  model.require(SUMS != A && SUMS != B && A != B, "three different tiles expected");
  model.require(config.row_bytes[SUMS] % 4 == 0 && config.row_bytes[A] % 4 == 0 && config.row_bytes[B] % 4 == 0,
                "rows of whole 32-bit elements expected");
  model.require(config.rows[SUMS] == config.rows[A] && config.row_bytes[SUMS] == config.row_bytes[B] &&
                    config.row_bytes[A] == 4 * config.rows[B],
                "the shapes of sums, A and B disagree");
  int32_t sums[TileModel::MOST_ROWS][TileModel::MOST_BYTES / 4];
  std::memcpy(sums, model.data[SUMS], sizeof sums);
  for (int m = 0; m < config.rows[A]; ++m)
    for (int q = 0; q < config.row_bytes[A] / 4; ++q) {
      int8_t a[4];
      std::memcpy(a, model.data[A][m] + 4 * q, sizeof a);
      const uint8_t* b = model.data[B][q];
      for (int n = 0; n < config.row_bytes[SUMS] / 4; ++n)
        sums[m][n] += a[0] * b[4 * n] + a[1] * b[4 * n + 1] + a[2] * b[4 * n + 2] + a[3] * b[4 * n + 3];
    }
  model.clear(SUMS);
  for (int m = 0; m < config.rows[SUMS]; ++m) std::memcpy(model.data[SUMS][m], sums[m], config.row_bytes[SUMS]);
}

}  // namespace torchcoinfer
