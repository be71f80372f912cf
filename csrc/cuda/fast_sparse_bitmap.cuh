// A warp's walk through its tiles of a bitmap n-block: masks to ranks, survivors to operand A of mma_16816.
//
// Survivors are copied as they lie in the stream, 256 a round, 8 a lane, DEPTH rounds ahead, and become pairs in a
// ring: entry i holds survivors i - 1 and i, so that one aligned word gives two neighbors from anywhere. A lane's part of
// four groups (16 columns) is one byte of a mask word: rows 2g and 2g + 1 of group t, four columns each. Its rank is the
// survivors before the word's half, from a scan over the 32 halves of two tiles, and the bits below it in the half:
//
//   mask word of group t:  | row 0 | row 1 | .. | row 2g | row 2g + 1 | .. | row 15 |     4 bits a row
//                            <- rank: bits set here ->     k0 k1 k2 k3
//   ring: entry rank + bits of (k0, k1) - 1 = the last of that pair's survivors and the one before; byte selectors from
//         a table of 16 put them where their bits are, zeros elsewhere.
//
// A's row g is row 2g of the block, its row g + 8 is 2g + 1; its columns {2t, 2t + 1} and {2t + 8, 2t + 9} are the
// pairs of group t; so a lane's part of x is 4 neighbors.

#pragma once

#include "cuda/fragments.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int SURVIVORS = 8;                  // of a lane in a round
constexpr int ROUND = LANES * SURVIVORS;      // survivors
constexpr int DEPTH = 4;                      // rounds under way
constexpr int RING = 1024;                    // survivors: two of a tile, rounded up
constexpr int MIRROR = 8;                     // the ring's first entries again, after its end
constexpr int RAW_BYTES = DEPTH * LANES * LANE_BYTES;
constexpr int WARP_BYTES = (RING + MIRROR) * 4 + RAW_BYTES;
constexpr int TABLE_ENTRIES = 16;
constexpr int HALVES = 2 * TILE_GROUPS;  // of a tile's mask words

// For four mask bits, by pairs: byte selectors in the low half, bits set up to the pair's end in the high one.
__device__ inline uint2 table_entry(int bits) {
  const auto selector = [](int pair) {
    return pair == 3 ? 0x3210u : pair == 2 ? 0x3244u : pair == 1 ? 0x4432u : 0x4444u;
  };
  const auto ends = [](int below) { return static_cast<uint32_t>(__popc(below)) << 16; };
  return {selector(bits & 3) | ends(bits & 3), selector(bits >> 2) | ends(bits)};
}

template <typename T, int BITS>
struct Survivors {
  const unsigned char* values;
  int64_t base, limit;  // survivors of the matrix: the first round's, and where the block's end
  uint32_t* ring;
  uint4* raw;
  uint32_t carry, zero;
  int lane, rounds;  // in the ring

  // position: of the warp's first survivor. Returns it relative to the ring's first.
  __device__ int begin(const SparseMatrix& w, int64_t position, int64_t end, unsigned char* shared, int of_lane) {
    constexpr int64_t STEP = BITS ? CHUNK : SURVIVORS;
    values = static_cast<const unsigned char*>(w.values);
    base = position / STEP * STEP, limit = end;
    ring = reinterpret_cast<uint32_t*>(shared + RAW_BYTES), raw = reinterpret_cast<uint4*>(shared);
    carry = 0, zero = zero_operand<T, 8>(w.zeros ? 0 : implicit_zero(BITS ? BITS : 1));
    lane = of_lane, rounds = 0;
    for (int round = 0; round < DEPTH; ++round) fetch(round);
    return static_cast<int>(position - base);
  }

  __device__ void fetch(int round) const {
    const int64_t first = base + static_cast<int64_t>(round) * ROUND + lane * SURVIVORS;
    const bool there = first < limit;
    unsigned char* to = reinterpret_cast<unsigned char*>(raw + round % DEPTH * LANES + lane);
    if constexpr (BITS == 0) {
      copy_async(to, values + (there ? 2 * first : 0), there);
    } else {
      const unsigned char* chunk = values + (there ? first / CHUNK * chunk_bytes(BITS) : 0);
#pragma unroll
      for (int index = 0; index < plane_count(BITS); ++index) {
        const Plane p = plane(BITS, index);
        copy_async_small<8>(to + 8 * index, chunk + 8 * p.shift + 8 * (lane % 8 % p.bits), there);
      }
    }
    commit_copies();
  }

  // The lane's 8 survivors of the next round, two a word.
  __device__ void take(uint32_t (&words)[4]) {
    wait_copies<DEPTH - 1>();
    const uint4 four = raw[rounds % DEPTH * LANES + lane];
    if constexpr (BITS == 0) {
      words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
    } else {
      const uint32_t parts[2][2] = {{four.x, four.y}, {four.z, four.w}};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t codes = 0;
#pragma unroll
        for (int index = 0; index < plane_count(BITS); ++index) {
          const Plane p = plane(BITS, index);
          const uint32_t mask = ((1u << p.bits) - 1u) * 0x01010101u;
          codes |= (parts[index][half] >> p.bits * (lane % 8 / p.bits) & mask) << p.shift;
        }
        words[2 * half] = bytes_less_zero<T, 0, 1>(codes, zero);
        words[2 * half + 1] = bytes_less_zero<T, 2, 3>(codes, zero);
      }
    }
  }

  // Until the ring holds the survivors before `end`.
  __device__ void ensure(int end) {
    __syncwarp();  // nobody reads what is overwritten
    while (rounds * ROUND < end) {
      uint32_t words[4];
      take(words);
      fetch(rounds + DEPTH);
      uint32_t before = __shfl_up_sync(ALL_LANES, words[3], 1);
      if (lane == 0) before = carry;
      carry = __shfl_sync(ALL_LANES, words[3], LANES - 1);
      const auto between = [](uint32_t one, uint32_t next) { return __byte_perm(one, next, 0x5432); };
      const uint4 low = {between(before, words[0]), words[0], between(words[0], words[1]), words[1]};
      const uint4 high = {between(words[1], words[2]), words[2], between(words[2], words[3]), words[3]};
      const int at = rounds * ROUND % RING + lane * SURVIVORS;
      auto* place = reinterpret_cast<uint4*>(ring + at);
      place[0] = low, place[1] = high;
      if (at == 0) {
        auto* mirror = reinterpret_cast<uint4*>(ring + RING);
        mirror[0] = low, mirror[1] = high;
      }
      ++rounds;
    }
    __syncwarp();
  }
};

// The walk. A kernel calls `begin` with all threads, then `next` until it is false, `fragment` for the tiles found.
template <typename T, int BITS>
struct Walk {
  const uint32_t* masks;  // [tiles, 16]: halves of mask words
  const uint2* table;     // [16], shared
  Survivors<T, BITS> survivors;
  int tile, last, lane;  // tiles of the warp
  uint32_t mask, coming;  // one half a lane, of these two tiles and of the next
  int seen, before, sum;  // survivors before these tiles, before the half, of these tiles up to the half's end

  __device__ uint32_t load_mask(int first) const {
    return first + lane / HALVES < last ? __ldg(masks + static_cast<int64_t>(first) * HALVES + lane) : 0u;
  }

  // shared: WARP_BYTES a warp, then the table, then an int a warp.
  __device__ void begin(const SparseMatrix& w, int64_t block, unsigned char* shared) {
    const int tiles = static_cast<int>(ceil_div(w.K, TILE_K)), warps = static_cast<int>(blockDim.x) / WARP;
    const int warp = threadIdx.x / WARP, each = static_cast<int>(ceil_div(ceil_div(tiles, warps), 2)) * 2;
    auto* entries = reinterpret_cast<uint2*>(shared + warps * WARP_BYTES);
    auto* counts = reinterpret_cast<int*>(entries + TABLE_ENTRIES);
    lane = threadIdx.x % WARP, table = entries;
    masks = reinterpret_cast<const uint32_t*>(w.masks) + block * tiles * HALVES;
    tile = min(warp * each, tiles) - 2, last = min(warp * each + each, tiles);
    if (threadIdx.x < TABLE_ENTRIES) entries[threadIdx.x] = table_entry(threadIdx.x);
    int count = 0;
    for (int i = (tile + 2) * HALVES + lane; i < last * HALVES; i += LANES) count += __popc(__ldg(masks + i));
    count = __reduce_add_sync(ALL_LANES, count);
    if (lane == 0) counts[warp] = count;
    int64_t first = static_cast<int64_t>(w.offsets[block]) * CHUNK;
    int64_t end = static_cast<int64_t>(w.offsets[block + 1]) * CHUNK;
    if (first < 0 || first > end || end > w.chunks * CHUNK) first = end = 0;  // never read beyond the values
    coming = load_mask(tile + 2);
    __syncthreads();
    for (int other = 0; other < warp; ++other) first += counts[other];
    seen = survivors.begin(w, first, end, shared + warp * WARP_BYTES, lane);
    sum = 0;
  }

  // The next two tiles: `tile` and the one after, of which there are `last - tile`.
  __device__ bool next() {
    seen += __shfl_sync(ALL_LANES, sum, LANES - 1);
    tile += 2;
    if (tile >= last) return false;
    mask = coming;
    coming = load_mask(tile + 2);
    const int count = __popc(mask);
    sum = count;
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) {
      const int other = __shfl_up_sync(ALL_LANES, sum, step);
      if (lane >= step) sum += other;
    }
    before = seen + sum - count;
    return true;
  }

  // Makes the survivors of tile number v of the two ready.
  __device__ void prepare(int v) {
    survivors.ensure(seen + __shfl_sync(ALL_LANES, sum, v * HALVES + HALVES - 1));
  }

  // Operand A of groups 4s .. 4s + 3 of tile v, and the selectors that put its pairs in place.
  __device__ __forceinline__ void fragment(int v, int s, uint32_t (&a)[4], uint32_t (&selectors)[4]) const {
    const int g = lane / 4, from = v * HALVES + (4 * s + lane % 4) * 2 + g / 4, shift = g % 4 * 8;
    const uint32_t half = __shfl_sync(ALL_LANES, mask, from);
    const int rank = __shfl_sync(ALL_LANES, before, from) + __popc(half & ((1u << shift) - 1u));
    const uint2 even = table[half >> shift & 15u], odd = table[half >> (shift + 4) & 15u];
    const uint32_t* ring = survivors.ring + ((rank - 1) & (RING - 1));
    const uint32_t* later = ring + (even.y >> 16);
    selectors[0] = even.x, selectors[1] = odd.x, selectors[2] = even.y, selectors[3] = odd.y;
    a[0] = __byte_perm(ring[even.x >> 16], 0, even.x & 0x7777u);
    a[2] = __byte_perm(ring[even.y >> 16], 0, even.y & 0x7777u);
    a[1] = __byte_perm(later[odd.x >> 16], 0, odd.x & 0x7777u);
    a[3] = __byte_perm(later[odd.y >> 16], 0, odd.y & 0x7777u);
  }
};

constexpr size_t walk_bytes(int warps) {
  return static_cast<size_t>(warps) * (WARP_BYTES + sizeof(int)) + TABLE_ENTRIES * sizeof(uint2);
}

}  // namespace
}  // namespace torchcoinfer::cuda
