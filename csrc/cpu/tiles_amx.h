// The tile instructions of AMX as functions of the same names: eight registers of 16 rows of 64 bytes. No intrinsics:
// g++ 12 declares 8 of the 64 bytes that ldtilecfg reads, and not that tileloadd reads memory.
//
// Where TORCHCOINFER_TILES names a header, that one takes the place of the instructions: tests/csrc/tile_model.h, their
// meaning in plain C++, with which the kernels' logic runs on machines without AMX.

#pragma once

#include <cstdint>

namespace torchcoinfer {

// As ldtilecfg reads it. A register of `rows` rows of `row_bytes` bytes (at most 16 of 64).
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void shape(int tile, int64_t tile_rows, int64_t bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace torchcoinfer

#ifdef TORCHCOINFER_TILES
#include TORCHCOINFER_TILES
#else

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace torchcoinfer {

// The CPU's int8 tiles, and the kernel's permission for this process to use them.
inline bool tiles_available() {
#if defined(__linux__)
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool permitted = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
                                syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return permitted;
#else
  return false;
#endif
}

inline void ldtilecfg(const TileConfig& config) {
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
inline void tilerelease() {
  asm volatile("tilerelease" ::: "memory");
}
template <int TILE>
inline void tilezero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
// Row i at base + i * stride bytes.
template <int TILE>
inline void tileloadd(const void* base, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
inline void tilestored(void* base, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(stride), "i"(TILE) : "memory");
}
// SUMS [m][n] int32 += sum over q and i < 4 of A [m][4q + i] (signed) * B [q][4n + i] (unsigned)
template <int SUMS, int A, int B>
inline void tdpbsud() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(B));
}

}  // namespace torchcoinfer

#endif
