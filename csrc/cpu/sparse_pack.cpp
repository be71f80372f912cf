#include <cstring>

#include "cpu/sparse.h"

namespace torchcoinfer {
namespace {

// Where W[n][k] of the place `at` (4 * n + k % 4) in group g of tile t lies; false in the padding.
struct Walk {
  int64_t N, K, block;

  bool index(int64_t tile, int g, int at, int64_t* element) const {
    const int64_t n = block * BLOCK_N + at / GROUP_K, k = tile * TILE_K + g * GROUP_K + at % GROUP_K;
    *element = n * K + k;
    return n < N && k < K;
  }
};

// Writes survivors one after another, as floats or into chunks of codes.
class SurvivorWriter {
 public:
  SurvivorWriter(void* out, int64_t value_bytes, int bits, int64_t chunk)
      : bytes_(static_cast<uint8_t*>(out) + chunk * (bits ? chunk_bytes(bits) : CHUNK * value_bytes)),
        value_bytes_(value_bytes),
        bits_(bits) {}
  // value: nullptr writes a zero
  void put(const void* value) {
    if (bits_) {
      const int code = value ? *static_cast<const uint8_t*>(value) : 0;
      put_chunk_code(bytes_ + count_ / CHUNK * chunk_bytes(bits_), bits_, static_cast<int>(count_ % CHUNK), code);
    } else if (value) {
      std::memcpy(bytes_ + count_ * value_bytes_, value, value_bytes_);
    }
    ++count_;
  }

 private:
  uint8_t* bytes_;
  int64_t value_bytes_;
  int bits_;
  int64_t count_ = 0;
};

uint64_t group_mask(const uint8_t* kept, const Walk& walk, int64_t tile, int g) {
  uint64_t mask = 0;
  int64_t element;
  for (int at = 0; at < GROUP_PLACES; ++at)
    if (walk.index(tile, g, at, &element) && kept[element]) mask |= uint64_t{1} << at;
  return mask;
}

}  // namespace

bool sparse24_pack_blocks(const void* values, int64_t value_bytes, const uint8_t* kept, int bits, int64_t N, int64_t K,
                          int64_t begin, int64_t end, uint8_t* index, void* out) {
  const int64_t tiles = ceil_div(K, TILE_K);
  const auto* source = static_cast<const uint8_t*>(values);
  for (int64_t block = begin; block < end; ++block) {
    const Walk walk{N, K, block};
    SurvivorWriter writer(out, value_bytes, bits, block * tiles * TILE_CHUNKS);
    for (int64_t t = 0; t < tiles; ++t)
      for (int g = 0; g < TILE_GROUPS; ++g) {
        const uint64_t mask = group_mask(kept, walk, t, g);
        for (int n = 0; n < BLOCK_N; ++n) {
          const int of_row = static_cast<int>(mask >> GROUP_K * n & 15);
          if (__builtin_popcount(of_row) > 2) return false;
          const int nibble = mask_nibble(of_row);
          uint8_t* byte = index + (block * tiles + t) * INDEX_BYTES + 8 * g + n / 2;
          *byte = static_cast<uint8_t>(*byte | nibble << 4 * (n % 2));
          for (const int k : {nibble & 3, nibble >> 2}) {
            int64_t element;
            const bool inside = walk.index(t, g, GROUP_K * n + k, &element);
            writer.put(inside && (bits || of_row >> k & 1) ? source + element * value_bytes : nullptr);
          }
        }
      }
  }
  return true;
}

void bitmap_masks(const uint8_t* kept, int64_t N, int64_t K, int64_t begin, int64_t end, uint64_t* masks,
                  int64_t* counts) {
  const int64_t tiles = ceil_div(K, TILE_K);
  for (int64_t block = begin; block < end; ++block) {
    counts[block] = 0;
    for (int64_t t = 0; t < tiles; ++t)
      for (int g = 0; g < TILE_GROUPS; ++g) {
        const uint64_t mask = group_mask(kept, {N, K, block}, t, g);
        masks[(block * tiles + t) * TILE_GROUPS + g] = mask;
        counts[block] += __builtin_popcountll(mask);
      }
  }
}

void bitmap_pack_blocks(const void* values, int64_t value_bytes, int bits, int64_t N, int64_t K, const uint64_t* masks,
                        const int32_t* offsets, int64_t begin, int64_t end, void* out) {
  const int64_t tiles = ceil_div(K, TILE_K);
  for (int64_t block = begin; block < end; ++block) {
    const Walk walk{N, K, block};
    SurvivorWriter writer(out, value_bytes, bits, offsets[block]);
    for (int64_t t = 0; t < tiles; ++t)
      for (int g = 0; g < TILE_GROUPS; ++g)
        for (uint64_t mask = masks[(block * tiles + t) * TILE_GROUPS + g]; mask; mask &= mask - 1) {
          int64_t element;
          walk.index(t, g, __builtin_ctzll(mask), &element);
          writer.put(static_cast<const uint8_t*>(values) + element * value_bytes);
        }
  }
}

bool sparse_unpack_blocks(const SparseMatrix& matrix, int64_t value_bytes, int64_t begin, int64_t end, void* dense,
                          uint8_t* kept) {
  const int64_t tiles = matrix.tiles();
  const auto* values = static_cast<const uint8_t*>(matrix.values);
  for (int64_t block = begin; block < end; ++block) {
    const Walk walk{matrix.N, matrix.K, block};
    int64_t survivor = matrix.first_chunk(block) * CHUNK;
    const int64_t last = matrix.first_chunk(block + 1) * CHUNK;
    for (int64_t t = 0; t < tiles; ++t)
      for (int g = 0; g < TILE_GROUPS; ++g) {
        const int64_t word = (block * tiles + t) * TILE_GROUPS + g;
        uint64_t mask = matrix.paired ? index_mask(matrix.index + word * 8, 0) : matrix.masks[word];
        if (survivor + __builtin_popcountll(mask) > last) return false;
        for (; mask; mask &= mask - 1, ++survivor) {
          int64_t element;
          if (!walk.index(t, g, __builtin_ctzll(mask), &element)) continue;
          kept[element] = 1;
          auto* target = static_cast<uint8_t*>(dense) + element * value_bytes;
          if (matrix.bits)
            *target = static_cast<uint8_t>(chunk_code(values + survivor / CHUNK * chunk_bytes(matrix.bits),
                                                      matrix.bits, static_cast<int>(survivor % CHUNK)));
          else
            std::memcpy(target, values + survivor * value_bytes, value_bytes);
        }
      }
    if (ceil_div(survivor, CHUNK) * CHUNK != last) return false;
  }
  return true;
}

}  // namespace torchcoinfer
