// The device order of packed weights: a bijection of the canonical buffers (layout.h, layout_sparse.h), n-block by
// n-block, in which every lane of a warp finds the codes of its mma fragments in 16-byte vectors. `layout` argument: 1.
// Scales, zero points and everything of the bitmap format keep the canonical order.
//
// The weight is operand A of mma (16 rows = the 16 n of a block), x is B: sparse operands must be A, and 8 rows of x
// fill an instruction. lane = 4 g + t holds rows g and g + 8.
//
// Dense. A tile gives lane (g, t) the 8 columns k = 8t .. 8t + 7 of both rows, 16 codes: columns of a product may be
// permuted if both operands are, and so a lane's part of x is 8 neighbors. mma_16816 step s takes k = 8t + 4s + {0, 1}
// as its columns {2t, 2t + 1} and 8t + 4s + {2, 3} as {2t + 8, 2t + 9}; mma_16832 takes 8t + {0 .. 3} as 4t + {0 .. 3}
// and 8t + {4 .. 7} as 4t + 16 + {0 .. 3}. Where a plane's codes of a lane lie, with h = 0 for row g, 1 for row g + 8,
// i = k % 8, p bits a field:
//
//   p  words a tile  word        lowest bit
//   8  4             2h + i / 4  8 (i % 4)                       four neighbors: the operand of mma_16832
//   4  2             h           4 (i / 2) + 16 (i % 2)          word >> 4j & 0x000f000f: k = 2j and 2j + 1, as halves
//   2  1             0           2 (4h + i / 2) + 16 (i % 2)
//   1  1/2           u / 2       8 (u % 2) + 4h + i / 2 + 16 (i % 2)
//
// Four tiles (u = 0 .. 3), 128 columns, are a quad: its planes follow one another; a plane is p / 2 rounds (p = 1: half
// a one) of 512 bytes, 16 bytes a lane, its words in the order u, word: word v is in round v / 4 at 16 lane + 4 (v % 4);
// with p = 1 at 8 lane + 4 v. The KT % 4 tiles after the last quad stand alone: planes as in the canonical tile, each
// lane's 2p bytes together; with p = 1 the even k in the low byte, the odd ones in the high one.
//
// 2:4. A tile is one mma_sp_16832, columns in their own order. Lane (g, t) holds survivors j = 2r + slot of row
// g + 8 (r % 2), group t + 4 (r / 2): register r of A.
//   values, floats: survivor j of lane at 8 lane + j of the tile
//   values, codes: as above with p / 4 words a tile: p = 8: word j / 4, bit 8 (j % 4); p = 4: bit 4r + 16 slot; p = 2:
//     word u / 2, bit 2 (4 (u % 2) + r) + 16 slot; p = 1: bit 4u + r + 16 slot. A quad's words of a plane lie together,
//     p words a lane, in rounds of at most 4; alone: p bytes a lane, the even slots in the low half.
//   index: word u / 2 of a quad's two for lane 4g + 2 (u % 2) + h is the metadata of columns 16h .. 16h + 15 for
//     selector u % 2: nibble i: row g, group 4h + i; nibble 4 + i: row g + 8. Alone: word 2g + h.
//
// Worked example, b = 4, KT = 4, code(n, k) = (n + k) % 16. Lane 0, round 0: tile 0, row 0: k = 0, 2, 4, 6 in the low
// half, 1, 3, 5, 7 in the high: 20 64 .. as word 0x75316420; row 8: 0xfdb9eca8; tile 1 (k = 32 .. 39) the same two words.

#pragma once

#include "layout_sparse.h"

namespace torchcoinfer {

constexpr int CANONICAL_LAYOUT = 0;
constexpr int DEVICE_LAYOUT = 1;
constexpr int QUAD = 4;  // tiles
constexpr int LANES = 32;
constexpr int LANE_BYTES = 16;  // of a vector
constexpr int ROUND_BYTES = LANES * LANE_BYTES;
constexpr int LANE_SURVIVORS = 8;  // of a 2:4 tile

// Lowest bit of a field: byte within the n-block's part of the buffer, bit within the byte.
struct Bit {
  int64_t byte;
  int shift;
};

TORCHCOINFER_HOST_DEVICE constexpr bool in_quad(int64_t tiles, int64_t tile) {
  return tile / QUAD * QUAD + QUAD <= tiles;
}

// --- dense

TORCHCOINFER_HOST_DEVICE constexpr int dense_lane(int n, int k) {
  return n % 8 * 4 + k / 8;
}

TORCHCOINFER_HOST_DEVICE constexpr Bit device_bit(const Plane& p, int bits, int64_t tiles, int64_t tile, int n, int k) {
  const int lane = dense_lane(n, k), h = n / 8, i = k % 8, u = static_cast<int>(tile % QUAD);
  const int word = p.bits == 8 ? 2 * h + i / 4 : p.bits == 4 ? h : 0;
  const int bit = p.bits == 8   ? 8 * (i % 4)
                  : p.bits == 4 ? 4 * (i / 2) + 16 * (i % 2)
                  : p.bits == 2 ? 2 * (4 * h + i / 2) + 16 * (i % 2)
                                : 4 * h + i / 2;  // the rest depends on the neighbors
  if (!in_quad(tiles, tile)) {
    const int alone = p.bits == 1 ? bit + 8 * (i % 2) : bit;
    const int64_t start = tile * tile_bytes(bits) + p.offset + lane * 2 * p.bits;
    return {start + 4 * word + alone / 8, alone % 8};
  }
  const int64_t start = tile / QUAD * QUAD * tile_bytes(bits) + QUAD * p.offset;
  if (p.bits == 1) {
    const int whole = bit + 8 * (u % 2) + 16 * (i % 2);
    return {start + 8 * lane + 4 * (u / 2) + whole / 8, whole % 8};
  }
  const int v = u * (p.bits / 2) + word;
  return {start + v / 4 * ROUND_BYTES + LANE_BYTES * lane + 4 * (v % 4) + bit / 8, bit % 8};
}

// Reads the code of (n, k), n < 16, k < 32, of a tile from the device order of its n-block.
TORCHCOINFER_HOST_DEVICE inline int device_code(const uint8_t* block, int bits, int64_t tiles, int64_t tile, int n,
                                                int k) {
  int code = 0;
  for (int index = 0; index < plane_count(bits); ++index) {
    const Plane p = plane(bits, index);
    const Bit at = device_bit(p, bits, tiles, tile, n, k);
    code |= (block[at.byte] >> at.shift & ((1 << p.bits) - 1)) << p.shift;
  }
  return code;
}

// Where x codes go so that one unpacking of a word meets its four columns: the place of column i of 8 among the bytes
// of two B registers. Planes of 8 bits: as it is; of 4: word & 0x0f0f0f0f holds columns 0, 4, 1, 5, word >> 4 the rest.
TORCHCOINFER_HOST_DEVICE constexpr int byte_place(int bits, int i) {
  return bits == 8 ? i : 4 * (i / 2 % 2) + 2 * (i % 2) + i / 4;
}

// --- 2:4

TORCHCOINFER_HOST_DEVICE constexpr int survivor_lane(int n, int group) {
  return n % 8 * 4 + group % 4;
}

// j of a survivor among its lane's 8.
TORCHCOINFER_HOST_DEVICE constexpr int survivor_place(int n, int group, int slot) {
  return 2 * (n / 8 + 2 * (group / 4)) + slot;
}

TORCHCOINFER_HOST_DEVICE constexpr Bit device_survivor_bit(const Plane& p, int bits, int64_t tiles, int64_t tile, int n,
                                                           int group, int slot) {
  const int lane = survivor_lane(n, group), j = survivor_place(n, group, slot), r = j / 2;
  const int u = static_cast<int>(tile % QUAD);
  const int64_t of_tile = TILE_CHUNKS * chunk_bytes(bits);
  const int half = p.bits == 4 ? 16 : p.bits == 2 ? 8 : 4;  // where odd slots begin in a tile's part alone
  const int even = p.bits * r;
  if (!in_quad(tiles, tile)) {
    const int bit = p.bits == 8 ? 8 * j : even + half * slot;
    return {tile * of_tile + LANES * p.shift + lane * p.bits + bit / 8, bit % 8};
  }
  const int v = p.bits == 8 ? 2 * u + j / 4 : p.bits == 4 ? u : p.bits == 2 ? u / 2 : 0;
  const int bit = p.bits == 8   ? 8 * (j % 4)
                  : p.bits == 4 ? even + 16 * slot
                  : p.bits == 2 ? 8 * (u % 2) + even + 16 * slot
                                : 4 * u + even + 16 * slot;
  const int words = p.bits < 4 ? p.bits : 4;  // of a lane in a round
  const int64_t start = tile / QUAD * QUAD * of_tile + QUAD * LANES * p.shift;
  return {start + v / words * (LANES * 4 * words) + 4 * (words * lane + v % words) + bit / 8, bit % 8};
}

// Reads a survivor's code from the device order of its n-block.
TORCHCOINFER_HOST_DEVICE inline int device_survivor(const uint8_t* block, int bits, int64_t tiles, int64_t tile, int n,
                                                    int group, int slot) {
  int code = 0;
  for (int index = 0; index < plane_count(bits); ++index) {
    const Plane p = plane(bits, index);
    const Bit at = device_survivor_bit(p, bits, tiles, tile, n, group, slot);
    code |= (block[at.byte] >> at.shift & ((1 << p.bits) - 1)) << p.shift;
  }
  return code;
}

// Element of a float survivor within its tile.
TORCHCOINFER_HOST_DEVICE constexpr int device_survivor_element(int n, int group, int slot) {
  return LANE_SURVIVORS * survivor_lane(n, group) + survivor_place(n, group, slot);
}

// The index nibble of group and row n.
TORCHCOINFER_HOST_DEVICE constexpr Bit device_index_bit(int64_t tiles, int64_t tile, int n, int group) {
  const int g = n % 8, h = group / 4, nibble = group % 4 + 4 * (n / 8), u = static_cast<int>(tile % QUAD);
  const int shift = 4 * (nibble % 2), byte = nibble / 2;
  if (!in_quad(tiles, tile)) return {tile * INDEX_BYTES + 4 * (2 * g + h) + byte, shift};
  const int lane = 4 * g + 2 * (u % 2) + h;
  return {tile / QUAD * QUAD * INDEX_BYTES + 8 * lane + 4 * (u / 2) + byte, shift};
}

}  // namespace torchcoinfer
