// Sparse weight formats: the single truth for the CPU kernels, the CUDA kernels and the documentation. Blocks, tiles,
// scales and zero points are those of layout.h. A tile is 8 groups of 16 n x 4 k; within a group, place 4 * n + k % 4.
//
// 2:4: of 4 consecutive k exactly 2 are stored (where fewer are kept, zero-valued ones fill up).
//   index   uint8 [NB, KT, 64]: nibble i0 | i1 << 2 (i0 < i1) of group g and row n is in byte 8 * g + n / 2, low half
//           for even n. The survivors of a tile are in the order g, n, i: 256.
//   values  float16 | bfloat16 | float32 [NB, KT, 256], or codes uint8 [NB, KT, 32 * b] in 4 chunks
// bitmap: any pattern.
//   mask    int64 [NB, KT, 8]: bit 4 * n + k % 4 of group g's word set = kept
//   values  the survivors of an n-block in the order tile, g, bit: one stream, padded with zeros to a multiple of 64;
//           streams one after another: floats [total], or codes uint8 [total / 64 * 8 * b] in chunks
//   offsets int32 [NB + 1]: where a block's stream begins, in units of 64 survivors
// A 2:4 block is thus a bitmap block whose masks are stored as nibbles.
//
// A chunk is 64 codes of b bits in 8 * b bytes: the bit planes of the code (layout.h) one after another; in a plane of
// p bits, byte i holds the codes i, i + 8p, i + 16p, ..., the first in the lowest bits.
//
// Worked example, b = 4: W [16, 32] keeps only W[0][1] = code 5 and W[2][0] = code 7. bitmap: mask word 0 is 1 << 1 |
// 1 << 8 = 0x102, the others 0; one chunk of 32 bytes: byte 0 holds code 0 and code 32: 0x05, byte 1 is 0x07, the rest
// 0; offsets 0, 1. 2:4: n = 0 stores k = 0 (filled up) and 1: nibble 0b0100; n = 2 stores 0 and 1 too: every index
// byte is 0x44.

#pragma once

#include "layout.h"

namespace torchcoinfer {

constexpr int CHUNK = 64;                    // survivors
constexpr int GROUP_K = 4;                   // columns of a group
constexpr int TILE_GROUPS = TILE_K / GROUP_K;
constexpr int GROUP_PLACES = BLOCK_N * GROUP_K;
constexpr int PAIRED_SURVIVORS = GROUP_PLACES / 2;  // of a group in 2:4
constexpr int INDEX_BYTES = 64;              // of a tile in 2:4
constexpr int TILE_CHUNKS = TILE_GROUPS * PAIRED_SURVIVORS / CHUNK;

TORCHCOINFER_HOST_DEVICE constexpr int64_t chunk_bytes(int bits) {
  return 8 * static_cast<int64_t>(bits);
}

// Reads code i, i < 64, of one chunk.
TORCHCOINFER_HOST_DEVICE inline int chunk_code(const uint8_t* chunk, int bits, int i) {
  int code = 0;
  for (int index = 0; index < plane_count(bits); ++index) {
    const Plane p = plane(bits, index);
    const int bytes = 8 * p.bits;
    const int byte = chunk[8 * p.shift + i % bytes];
    code |= (byte >> p.bits * (i / bytes) & ((1 << p.bits) - 1)) << p.shift;
  }
  return code;
}

// Ors code i into one chunk, which must hold 0 there.
TORCHCOINFER_HOST_DEVICE inline void put_chunk_code(uint8_t* chunk, int bits, int i, int code) {
  for (int index = 0; index < plane_count(bits); ++index) {
    const Plane p = plane(bits, index);
    const int bytes = 8 * p.bits;
    uint8_t* byte = chunk + 8 * p.shift + i % bytes;
    *byte = static_cast<uint8_t>(*byte | (code >> p.shift & ((1 << p.bits) - 1)) << p.bits * (i / bytes));
  }
}

// The 4-bit mask that an index nibble stands for.
TORCHCOINFER_HOST_DEVICE constexpr int nibble_mask(int nibble) {
  return 1 << (nibble & 3) | 1 << (nibble >> 2);
}

// The nibble of a mask of 4 with at most 2 bits set: the kept columns and the lowest free ones, ascending.
TORCHCOINFER_HOST_DEVICE constexpr int mask_nibble(int mask) {
  int kept = mask & 15;
  for (int k = 0; k < GROUP_K && (kept & (kept - 1)) == 0; ++k) kept |= 1 << k;
  int first = 0;
  while (!(kept >> first & 1)) ++first;
  int second = first + 1;
  while (!(kept >> second & 1)) ++second;
  return first | second << 2;
}

// The mask of group g of a tile in 2:4.
TORCHCOINFER_HOST_DEVICE inline uint64_t index_mask(const uint8_t* index, int g) {
  uint64_t mask = 0;
  for (int n = 0; n < BLOCK_N; ++n) {
    const int nibble = index[8 * g + n / 2] >> 4 * (n % 2) & 15;
    mask |= static_cast<uint64_t>(nibble_mask(nibble)) << GROUP_K * n;
  }
  return mask;
}

}  // namespace torchcoinfer
