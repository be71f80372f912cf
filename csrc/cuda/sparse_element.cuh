// One weight of a sparse matrix in any order, by index arithmetic: for kernels that must serve everything.

#pragma once

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {

constexpr int TILE_SURVIVORS = TILE_CHUNKS * CHUNK;

// The columns that row n keeps of group g in a 2:4 tile: the first in the low two bits.
__device__ inline int paired_nibble(const SparseMatrix& w, int64_t block, int64_t tiles, int64_t t, int n, int g) {
  const uint8_t* index = w.index + block * tiles * INDEX_BYTES;
  if (w.layout != DEVICE_LAYOUT) return index[t * INDEX_BYTES + 8 * g + n / 2] >> 4 * (n % 2) & 15;
  const Bit at = device_index_bit(tiles, t, n, g);
  return index[at.byte] >> at.shift & 15;
}

// A survivor's code by its number in the stream of all.
__device__ inline int stream_code(const SparseMatrix& w, int64_t survivor) {
  const auto* chunk = static_cast<const uint8_t*>(w.values) + survivor / CHUNK * chunk_bytes(w.bits);
  return chunk_code(chunk, w.bits, static_cast<int>(survivor % CHUNK));
}

// The code that row n of a 2:4 tile stores in a slot of group g.
__device__ inline int paired_code(const SparseMatrix& w, int64_t block, int64_t tiles, int64_t t, int n, int g,
                                  int slot) {
  if (w.layout != DEVICE_LAYOUT)
    return stream_code(w, (block * tiles + t) * TILE_SURVIVORS + g * PAIRED_SURVIVORS + 2 * n + slot);
  const auto* values = static_cast<const uint8_t*>(w.values) + block * tiles * TILE_CHUNKS * chunk_bytes(w.bits);
  return device_survivor(values, w.bits, tiles, t, n, g, slot);
}

__device__ inline float paired_survivor(const SparseMatrix& w, const Grid& grid, int64_t block, int64_t tiles,
                                        int64_t t, int n, int g, int slot) {
  if (w.bits) return grid.scale * static_cast<float>(paired_code(w, block, tiles, t, n, g, slot) - grid.zero);
  const int of_tile = w.layout == DEVICE_LAYOUT ? device_survivor_element(n, g, slot)
                                                : g * PAIRED_SURVIVORS + 2 * n + slot;
  return load_element(w.values, w.value_type, (block * tiles + t) * TILE_SURVIVORS + of_tile);
}

__device__ inline float paired_weight(const SparseMatrix& w, const Grid& grid, int64_t block, int64_t tiles, int64_t t,
                                      int n, int k) {
  const int g = k / GROUP_K, nibble = paired_nibble(w, block, tiles, t, n, g);
  const int slot = k % GROUP_K == (nibble & 3) ? 0 : k % GROUP_K == nibble >> 2 ? 1 : -1;
  return slot < 0 ? 0.f : paired_survivor(w, grid, block, tiles, t, n, g, slot);
}

// Survivors of a bitmap block, tile by tile.
struct Stream {
  int64_t first, last, seen;

  __device__ Stream(const SparseMatrix& w, int64_t block) : first(0), last(0), seen(0) {
    if (w.paired) return;
    first = static_cast<int64_t>(w.offsets[block]) * CHUNK;
    last = static_cast<int64_t>(w.offsets[block + 1]) * CHUNK;
    if (first < 0 || last > w.chunks * CHUNK) last = first;  // never read beyond the values
  }
  // The weight of (n, k) in the tile whose masks are given.
  __device__ float weight(const SparseMatrix& w, const Grid& grid, const uint64_t* masks, int n, int k) const {
    const int g = k / GROUP_K, at = GROUP_K * n + k % GROUP_K;
    if (!(masks[g] >> at & 1)) return 0.f;
    int64_t survivor = first + seen + __popcll(masks[g] & ((uint64_t{1} << at) - 1));
    for (int i = 0; i < g; ++i) survivor += __popcll(masks[i]);
    if (survivor >= last) return 0.f;
    if (!w.bits) return load_element(w.values, w.value_type, survivor);
    return grid.scale * static_cast<float>(stream_code(w, survivor) - grid.zero);
  }
  __device__ void pass(const uint64_t* masks) {
    for (int i = 0; i < TILE_GROUPS; ++i) seen += __popcll(masks[i]);
  }
};

}  // namespace torchcoinfer::cuda
