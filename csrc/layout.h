// Packed weight formats: the single truth for the CPU kernels, the CUDA kernels and the documentation.
//
// Dense format. W is [N, K] (N = out_features, K = in_features), as unsigned codes of b in {2, 3, 4, 5, 6, 8} bits:
//   packed  uint8 [NB, KT, 64 * b]   NB = ceil(N / 16) n-blocks, KT = ceil(K / 32) tiles a block; padding codes are 0
//   scales  float16 | bfloat16 | float32 [NB, G, 16]   G = ceil(K / group_size); group_size 0: the whole row, G = 1
//   zeros   uint8 [NB, G, 16], or none: symmetric, zero point 2^(b-1)
//   w[n][k] = scale * (code - zero);  padded rows have scale 0 and zero 0
//
// A tile is 16 n x 32 k. Its codes are split into bit planes, stored one after another: 8 = [8], 6 = [4, 2],
// 5 = [4, 1], 4 = [4], 3 = [2, 1], 2 = [2]; the first plane holds the low bits. A plane of p bits is a row of 64-byte
// vectors, each 16 n x 32/p k: 32-bit lane j is n = j; bit field f (bits p*f .. p*f+p-1) of the lane's byte i is
// k = 4*f + i. So (vector >> p*f) & mask gives four consecutive k per lane: the u8 operand of vpdpbusd, tdpbsud, udot.
//
// Worked example, b = 4, code(n, k) = (n + k) % 16, one tile (256 bytes). Byte 0: n = 0, k = 0 and k = 4: 0 | 4 << 4 =
// 0x40; the first lane is 40 51 62 73, the second (n = 1) 51 62 73 84; byte 64 (n = 0, k = 8 and 12) is 8 | 12 << 4 =
// 0xc8. With b = 3, code = (n + k) % 8: the 2-plane's byte 0 holds the low bits of k = 0, 4, 8, 12: 0x00, its byte 2
// those of k = 2, 6, 10, 14: 0xaa; the 1-plane (from byte 128) holds bit 2 of k = 0, 4, .. 28: byte 128 is 0xaa.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define TORCHCOINFER_HOST_DEVICE __host__ __device__
#else
#define TORCHCOINFER_HOST_DEVICE
#endif

namespace torchcoinfer {

constexpr int BLOCK_N = 16;       // rows of W in a block
constexpr int TILE_K = 32;        // columns of W in a tile
constexpr int VECTOR_BYTES = 64;  // bytes of one plane vector
constexpr int MAX_PLANES = 2;

TORCHCOINFER_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

TORCHCOINFER_HOST_DEVICE constexpr bool is_valid_bits(int64_t bits) {
  return bits >= 2 && bits <= 8 && bits != 7;
}

TORCHCOINFER_HOST_DEVICE constexpr bool is_valid_group_size(int64_t group_size) {
  return group_size == 0 || group_size == 32 || group_size == 64 || group_size == 128;
}

// The bit planes of a code. `shift`: position of the plane's lowest bit in the code; `offset`: its first byte in a tile.
struct Plane {
  int bits;
  int shift;
  int offset;
};

TORCHCOINFER_HOST_DEVICE constexpr int plane_count(int bits) {
  return bits == 3 || bits == 5 || bits == 6 ? 2 : 1;
}

TORCHCOINFER_HOST_DEVICE constexpr Plane plane(int bits, int index) {
  const int low = bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits;
  return index == 0 ? Plane{low, 0, 0} : Plane{bits - low, low, VECTOR_BYTES * low};
}

TORCHCOINFER_HOST_DEVICE constexpr int64_t tile_bytes(int bits) {
  return static_cast<int64_t>(VECTOR_BYTES) * bits;
}

TORCHCOINFER_HOST_DEVICE constexpr int64_t group_count(int64_t K, int64_t group_size) {
  return group_size == 0 ? 1 : ceil_div(K, group_size);
}

TORCHCOINFER_HOST_DEVICE constexpr int implicit_zero(int bits) {
  return 1 << (bits - 1);
}

// Where a field of plane p bits for (n, k) of a tile lies: byte within the plane, lowest bit within the byte.
struct Field {
  int byte;
  int shift;
};

TORCHCOINFER_HOST_DEVICE constexpr Field field_of(int plane_bits, int n, int k) {
  const int per_vector = TILE_K / plane_bits;
  const int in_vector = k % per_vector;
  return {VECTOR_BYTES * (k / per_vector) + 4 * n + in_vector % 4, plane_bits * (in_vector / 4)};
}

// Reads the code of (n, k), n < 16, k < 32, from one tile.
TORCHCOINFER_HOST_DEVICE inline int tile_code(const uint8_t* tile, int bits, int n, int k) {
  int code = 0;
  for (int index = 0; index < plane_count(bits); ++index) {
    const Plane p = plane(bits, index);
    const Field field = field_of(p.bits, n, k);
    code |= (tile[p.offset + field.byte] >> field.shift & ((1 << p.bits) - 1)) << p.shift;
  }
  return code;
}

// Ors the code of (n, k) into one tile, which must hold 0 there.
TORCHCOINFER_HOST_DEVICE inline void put_tile_code(uint8_t* tile, int bits, int n, int k, int code) {
  for (int index = 0; index < plane_count(bits); ++index) {
    const Plane p = plane(bits, index);
    const Field field = field_of(p.bits, n, k);
    const int part = code >> p.shift & ((1 << p.bits) - 1);
    tile[p.offset + field.byte] = static_cast<uint8_t>(tile[p.offset + field.byte] | part << field.shift);
  }
}

}  // namespace torchcoinfer
