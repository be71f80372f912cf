// The device order, exhaustively: canonical -> device -> every lane's fragments -> the same codes, each bit used once.
// C functions for tests/cuda/test_device_order.py; nullptr, or what went wrong.

#include <string>
#include <vector>

#include "layout_device.h"

#define LAYOUT extern "C" __attribute__((visibility("default"))) const char*

namespace torchcoinfer {
namespace {

using Bytes = std::vector<uint8_t>;

const char* failure(const std::string& what) {
  static std::string text;
  text = what;
  return text.c_str();
}

int sample(int bits, int64_t a, int b, int c) {
  return static_cast<int>((a * 7919 + b * 131 + c * 31 + (a * b + c) / 3) & ((1 << bits) - 1));
}

// Marks the bits of a field as used; false: one was used before, or lies outside.
bool use(Bytes* used, const Bit& at, int bits) {
  for (int i = 0; i < bits; ++i) {
    if (at.byte < 0 || at.byte >= static_cast<int64_t>(used->size()) || at.shift + bits > 8) return false;
    uint8_t& byte = (*used)[at.byte];
    if (byte >> (at.shift + i) & 1) return false;
    byte = static_cast<uint8_t>(byte | 1 << (at.shift + i));
  }
  return true;
}

bool all_used(const Bytes& used) {
  for (const uint8_t byte : used)
    if (byte != 255) return false;
  return true;
}

void put(Bytes* block, const Bit& at, int value) {
  (*block)[at.byte] = static_cast<uint8_t>((*block)[at.byte] | value << at.shift);
}

uint32_t word_at(const Bytes& block, int64_t byte) {
  return block[byte] | block[byte + 1] << 8 | block[byte + 2] << 16 | static_cast<uint32_t>(block[byte + 3]) << 24;
}

// Part of plane p that a lane reads from its vectors for column pair j of row half h in tile u: {even k, odd k}.
struct Pair {
  int even, odd;
};

Pair pair_of(const Bytes& block, int64_t start, int p, int lane, int u, int h, int j) {
  const int mask = (1 << p) - 1;
  const auto word = [&](int v) {
    return p == 1 ? word_at(block, start + 8 * lane + 4 * v)
                  : word_at(block, start + v / 4 * ROUND_BYTES + LANE_BYTES * lane + 4 * (v % 4));
  };
  if (p == 8) {
    const uint32_t four = word(4 * u + 2 * h + j / 2) >> 16 * (j % 2);
    return {static_cast<int>(four & 255), static_cast<int>(four >> 8 & 255)};
  }
  const uint32_t w = p == 4   ? word(2 * u + h) >> 4 * j
                     : p == 2 ? word(u) >> 2 * (4 * h + j)
                              : word(u / 2) >> (8 * (u % 2) + 4 * h + j);
  return {static_cast<int>(w & mask), static_cast<int>(w >> 16 & mask)};
}

}  // namespace

// Dense codes of one n-block of `tiles` tiles.
LAYOUT layout_check_dense(int bits, int tiles) {
  Bytes block(tiles * tile_bytes(bits)), used(block.size());
  for (int64_t t = 0; t < tiles; ++t)
    for (int n = 0; n < BLOCK_N; ++n)
      for (int k = 0; k < TILE_K; ++k)
        for (int index = 0; index < plane_count(bits); ++index) {
          const Plane p = plane(bits, index);
          const Bit at = device_bit(p, bits, tiles, t, n, k);
          if (!use(&used, at, p.bits)) return failure("a bit is used twice or lies outside");
          put(&block, at, sample(bits, t, n, k) >> p.shift & ((1 << p.bits) - 1));
        }
  if (!all_used(used)) return failure("a bit is never used");
  for (int64_t t = 0; t < tiles; ++t)
    for (int n = 0; n < BLOCK_N; ++n)
      for (int k = 0; k < TILE_K; ++k)
        if (device_code(block.data(), bits, tiles, t, n, k) != sample(bits, t, n, k))
          return failure("device_code gives another code");
  // every lane's view of every quad, by the table of layout_device.h alone
  for (int64_t quad = 0; quad + QUAD <= tiles; quad += QUAD)
    for (int lane = 0; lane < LANES; ++lane)
      for (int u = 0; u < QUAD; ++u)
        for (int h = 0; h < 2; ++h)
          for (int j = 0; j < 4; ++j) {
            Pair code{0, 0};
            for (int index = 0; index < plane_count(bits); ++index) {
              const Plane p = plane(bits, index);
              const Pair part = pair_of(block, quad * tile_bytes(bits) + QUAD * p.offset, p.bits, lane, u, h, j);
              code.even |= part.even << p.shift, code.odd |= part.odd << p.shift;
            }
            const int n = lane / 4 + 8 * h, k = lane % 4 * 8 + 2 * j;
            if (code.even != sample(bits, quad + u, n, k) || code.odd != sample(bits, quad + u, n, k + 1))
              return failure("a lane's view is of another code");
          }
  return nullptr;
}

// Survivors' codes of one n-block in 2:4.
LAYOUT layout_check_survivors(int bits, int tiles) {
  Bytes block(tiles * TILE_CHUNKS * chunk_bytes(bits)), used(block.size());
  for (int64_t t = 0; t < tiles; ++t)
    for (int n = 0; n < BLOCK_N; ++n)
      for (int place = 0; place < 2 * TILE_GROUPS; ++place)
        for (int index = 0; index < plane_count(bits); ++index) {
          const Plane p = plane(bits, index);
          const Bit at = device_survivor_bit(p, bits, tiles, t, n, place / 2, place % 2);
          if (!use(&used, at, p.bits)) return failure("a bit is used twice or lies outside");
          put(&block, at, sample(bits, t, n, place) >> p.shift & ((1 << p.bits) - 1));
        }
  if (!all_used(used)) return failure("a bit is never used");
  for (int64_t t = 0; t < tiles; ++t)
    for (int n = 0; n < BLOCK_N; ++n)
      for (int place = 0; place < 2 * TILE_GROUPS; ++place)
        if (device_survivor(block.data(), bits, tiles, t, n, place / 2, place % 2) != sample(bits, t, n, place))
          return failure("device_survivor gives another code");
  if (bits != 4) return nullptr;
  for (int64_t quad = 0; quad + QUAD <= tiles; quad += QUAD)  // register r of A: word >> 4r & 0x000f000f
    for (int lane = 0; lane < LANES; ++lane)
      for (int u = 0; u < QUAD; ++u)
        for (int r = 0; r < 4; ++r) {
          const uint32_t w = word_at(block, (quad * TILE_CHUNKS * 32) + LANE_BYTES * lane + 4 * u) >> 4 * r;
          const int n = lane / 4 + 8 * (r % 2), group = lane % 4 + 4 * (r / 2);
          if (static_cast<int>(w & 15) != sample(bits, quad + u, n, 2 * group) ||
              static_cast<int>(w >> 16 & 15) != sample(bits, quad + u, n, 2 * group + 1))
            return failure("a lane's view is of another survivor");
        }
  return nullptr;
}

// Index nibbles and places of float survivors in 2:4.
LAYOUT layout_check_index(int tiles) {
  Bytes block(tiles * INDEX_BYTES), used(block.size());
  for (int64_t t = 0; t < tiles; ++t)
    for (int n = 0; n < BLOCK_N; ++n)
      for (int group = 0; group < TILE_GROUPS; ++group) {
        const Bit at = device_index_bit(tiles, t, n, group);
        if (!use(&used, at, 4)) return failure("an index bit is used twice or lies outside");
        put(&block, at, sample(4, t, n, group));
      }
  if (!all_used(used)) return failure("an index bit is never used");
  for (int64_t quad = 0; quad + QUAD <= tiles; quad += QUAD)  // the metadata of mma_sp_16832
    for (int lane = 0; lane < LANES; ++lane)
      for (int pair = 0; pair < 2; ++pair)
        for (int i = 0; i < 8; ++i) {
          const uint32_t metadata = word_at(block, quad * INDEX_BYTES + 8 * lane + 4 * pair);
          const int selector = lane % 4 / 2, h = lane % 2, n = lane / 4 + i / 4 * 8;
          if (static_cast<int>(metadata >> 4 * i & 15) != sample(4, quad + 2 * pair + selector, n, 4 * h + i % 4))
            return failure("a lane's metadata is of another group");
        }
  Bytes places(256);
  for (int n = 0; n < BLOCK_N; ++n)
    for (int place = 0; place < 2 * TILE_GROUPS; ++place)
      if (places[device_survivor_element(n, place / 2, place % 2)]++) return failure("two survivors in one place");
  return nullptr;
}

// Eight columns in the bytes of two registers, as unpacking a word of codes gives them.
LAYOUT layout_check_bytes() {
  for (int i = 0; i < 8; ++i) {
    const int nibble = i / 2 + 4 * (i % 2);  // of the word of a 4-bit plane
    if (byte_place(4, i) != nibble % 2 * 4 + nibble / 2) return failure("a column meets another byte");
    if (byte_place(8, i) != i) return failure("a column meets another byte");
  }
  return nullptr;
}

}  // namespace torchcoinfer
