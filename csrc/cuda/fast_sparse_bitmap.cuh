// A warp's walk through its tiles of a bitmap n-block: masks to ranks, survivors to operand A of mma_16816.
//
// Survivors are copied as they lie in the stream, 256 a round, 8 a lane, DEPTH rounds ahead, and become pairs in a
// ring: entry i holds survivors i - 1 and i, so that one aligned word gives two neighbors from anywhere. A lane's part
// of four groups (16 columns) is one byte of a mask word: rows 2g and 2g + 1 of group t, four columns each. Its rank is
// the survivors before the word's half, from a scan over the 32 halves of two tiles, and the bits below it in the half:
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
constexpr int RING_BITS = 10;
constexpr int RING = 1 << RING_BITS;          // survivors: two of a tile, rounded up
constexpr int MIRROR = 8;                     // the ring's first entries again, after its end
constexpr int RAW_BYTES = DEPTH * LANES * LANE_BYTES;
constexpr int WARP_BYTES = (RING + MIRROR) * 4 + RAW_BYTES;
constexpr int TABLE_ENTRIES = 16;
constexpr int COMMON_BYTES = 256;  // the table, and an int a warp
constexpr int HALVES = 2 * TILE_GROUPS;  // of a tile's mask words
constexpr int STRIDE = 4;                // tiles

// For four mask bits, by pairs: byte selectors in the low half, bytes of the survivors up to the pair's end in the high
// one.
__device__ inline uint2 table_entry(int bits) {
  const auto selector = [](int pair) {
    return pair == 3 ? 0x3210u : pair == 2 ? 0x3244u : pair == 1 ? 0x4432u : 0x4444u;
  };
  const auto ends = [](int below) { return static_cast<uint32_t>(__popc(below)) << 18; };
  return {selector(bits & 3) | ends(bits & 3), selector(bits >> 2) | ends(bits)};
}

template <typename T, int BITS>
struct Survivors {
  static constexpr int STEP = BITS ? CHUNK : SURVIVORS;  // rounds begin at multiples of it
  const unsigned char* coming;  // the lane's part of the round to be fetched
  int left;                     // survivors of the block from there on
  unsigned char *raw, *ring;
  uint32_t carry, zero;
  int lane, held;  // survivors put into the ring so far

  // position: of the warp's first survivor. Returns it relative to the ring's first.
  __device__ int begin(const SparseMatrix& w, int64_t position, int64_t end, unsigned char* shared, int of_lane) {
    lane = of_lane, held = 0, carry = 0;
    const int64_t base = position / STEP * STEP, first = base + lane * SURVIVORS;
    left = static_cast<int>(end - first);
    const int64_t byte = BITS ? first / CHUNK * chunk_bytes(BITS) : 2 * first;
    coming = static_cast<const unsigned char*>(w.values) + byte;
    raw = shared + lane * LANE_BYTES, ring = shared + RAW_BYTES;
    zero = zero_operand<T, 8>(w.zeros ? 0 : implicit_zero(BITS ? BITS : 1));
    for (int round = 0; round < DEPTH; ++round) fetch(raw + round * ROUND_BYTES);
    return static_cast<int>(position - base);
  }

  __device__ __forceinline__ void fetch(unsigned char* to) {
    if constexpr (BITS == 0) {
      copy_async(to, coming, left > 0);
      coming += ROUND * 2;
    } else {
#pragma unroll
      for (int index = 0; index < plane_count(BITS); ++index) {
        const Plane p = plane(BITS, index);
        copy_async_small<8>(to + 8 * index, coming + 8 * p.shift + 8 * (lane % 8 % p.bits), left > 0);
      }
      coming += ROUND / CHUNK * chunk_bytes(BITS);
    }
    left -= ROUND;
    commit_copies();
  }

  // The lane's 8 survivors of a round, two a word.
  __device__ __forceinline__ void take(const unsigned char* from, uint32_t (&words)[4]) const {
    const uint4 four = *reinterpret_cast<const uint4*>(from);
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
  __device__ __forceinline__ void ensure(int end) {
    if (held >= end) return;
    __syncwarp();  // nobody reads what is overwritten
    const int before_loop = (held - 1) >> RING_BITS;
#pragma unroll 1
    while (held < end) {
      uint32_t words[4];
      unsigned char* slot = raw + (held * (ROUND_BYTES / ROUND) & (RAW_BYTES - 1));
      wait_copies<DEPTH - 1>();
      take(slot, words);
      fetch(slot);
      uint32_t before = __shfl_up_sync(ALL_LANES, words[3], 1);
      if (lane == 0) before = carry;
      carry = __shfl_sync(ALL_LANES, words[3], LANES - 1);
      const auto between = [](uint32_t one, uint32_t next) { return __byte_perm(one, next, 0x5432); };
      const uint4 low = {between(before, words[0]), words[0], between(words[0], words[1]), words[1]};
      const uint4 high = {between(words[1], words[2]), words[2], between(words[2], words[3]), words[3]};
      auto* place = reinterpret_cast<uint4*>(ring + (held * 4 & (RING * 4 - 1))) + 2 * lane;
      place[0] = low, place[1] = high;
      held += ROUND;
    }
    __syncwarp();
    if ((held - 1) >> RING_BITS == before_loop) return;
    // the ring's first entries are new
    if (lane < MIRROR) reinterpret_cast<uint32_t*>(ring)[RING + lane] = reinterpret_cast<const uint32_t*>(ring)[lane];
    __syncwarp();
  }
};

// The walk, STRIDE tiles at a time. A kernel calls `begin` with all threads, then `next` until it is false, then for the
// tiles that are there `prepare` and `fragment`.
template <typename T, int BITS>
struct Walk {
  const uint32_t* masks;  // the lane's next half
  Survivors<T, BITS> survivors;
  int tile, last, lane;      // tiles of the warp
  uint32_t mask[2];          // halves `lane` of the first two of these tiles and of the last two
  uint32_t coming[2];        // of the next
  uint32_t before[2];        // byte in the ring of the last survivor before the half, not wrapped
  int ends[2];               // survivors up to the half's end
  // of the lane's byte in a half: where it comes from, the bits below it, rotations to the table's entries
  uint32_t source, below, to_even, to_odd;

  __device__ void begin(const SparseMatrix& w, int64_t block, unsigned char* shared) {
    const int tiles = static_cast<int>(ceil_div(w.K, TILE_K)), warps = static_cast<int>(blockDim.x) / WARP;
    const int warp = threadIdx.x / WARP, each = static_cast<int>(ceil_div(tiles, warps));
    auto* entries = reinterpret_cast<uint2*>(shared);
    auto* counts = reinterpret_cast<int*>(entries + TABLE_ENTRIES);
    lane = threadIdx.x % WARP;
    const uint32_t shift = lane / 4 % 4 * 8;
    source = lane % 4 * 2 + lane / 16, below = (1u << shift) - 1u;
    to_even = (shift - 3) & 31, to_odd = shift + 1;  // 8 bytes an entry
    keep(source), keep(below), keep(to_even), keep(to_odd);
    const int first_tile = min(warp * each, tiles);
    last = min(warp * each + each, tiles), tile = first_tile - STRIDE;
    masks = reinterpret_cast<const uint32_t*>(w.masks) + (block * tiles + first_tile) * HALVES + lane;
    if (threadIdx.x < TABLE_ENTRIES) entries[threadIdx.x] = table_entry(threadIdx.x);
    int count = 0;
    for (int i = lane; i < (last - first_tile) * HALVES; i += LANES) count += __popc(__ldg(masks + (i - lane)));
    count = __reduce_add_sync(ALL_LANES, count);
    if (lane == 0) counts[warp] = count;
    int64_t first = static_cast<int64_t>(w.offsets[block]) * CHUNK;
    int64_t end = static_cast<int64_t>(w.offsets[block + 1]) * CHUNK;
    if (first < 0 || first > end || end > w.chunks * CHUNK) first = end = 0;  // never read beyond the values
    load_masks(first_tile);
    __syncthreads();
    for (int other = 0; other < warp; ++other) first += counts[other];
    ends[1] = survivors.begin(w, first, end, shared + COMMON_BYTES + warp * WARP_BYTES, lane);
  }

  __device__ __forceinline__ void load_masks(int first) {
    const int half = (last - first) * HALVES - lane;
    coming[0] = half > 0 ? __ldg(masks) : 0u;
    coming[1] = half > LANES ? __ldg(masks + LANES) : 0u;
    masks += 2 * LANES;
  }

  // The next tiles: `tile` and those after it, of which there are `last - tile`.
  __device__ __forceinline__ bool next() {
    tile += STRIDE;
    if (tile >= last) return false;
    const int seen = __shfl_sync(ALL_LANES, ends[1], LANES - 1);
    mask[0] = coming[0], mask[1] = coming[1];
    load_masks(tile + STRIDE);
    const int counts[2] = {__popc(mask[0]), __popc(mask[1])};
    uint32_t sums = static_cast<uint32_t>(counts[0] | counts[1] << 16);  // two scans in one: 2 tiles are 1024 at most
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) {
      const uint32_t other = __shfl_up_sync(ALL_LANES, sums, step);
      if (lane >= step) sums += other;
    }
    ends[0] = seen + static_cast<int>(sums & 0xffffu);
    ends[1] = __shfl_sync(ALL_LANES, ends[0], LANES - 1) + static_cast<int>(sums >> 16);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      before[i] = static_cast<uint32_t>(ends[i] - counts[i] - 1) * 4;
      keep(before[i]);
    }
    return true;
  }

  // Makes the survivors of tile number V of these ready.
  template <int V>
  __device__ __forceinline__ void prepare() {
    survivors.ensure(__shfl_sync(ALL_LANES, ends[V / 2], V % 2 * HALVES + HALVES - 1));
  }

  // Operand A of groups 4s .. 4s + 3 of tile V, and, in their low halves, the selectors that put its pairs in place.
  template <int V>
  __device__ __forceinline__ void fragment(int s, uint32_t (&a)[4], uint32_t (&selectors)[4]) const {
    const auto* table = static_cast<const unsigned char*>(dynamic_shared());
    const int from = static_cast<int>(source) + V % 2 * HALVES + s * (HALVES / 2);
    const uint32_t half = __shfl_sync(ALL_LANES, mask[V / 2], from);
    const uint32_t rank = __shfl_sync(ALL_LANES, before[V / 2], from) + 4 * __popc(half & below);
    const uint2 even = *reinterpret_cast<const uint2*>(table + (__funnelshift_r(half, half, to_even) & 0x78u));
    const uint2 odd = *reinterpret_cast<const uint2*>(table + (__funnelshift_r(half, half, to_odd) & 0x78u));
    const unsigned char* place = survivors.ring + (rank & (RING * 4 - 1));
    const unsigned char* later = place + (even.y >> 16);
    const auto pair = [](const unsigned char* at, uint32_t selector) {
      return select_bytes(*reinterpret_cast<const uint32_t*>(at), 0, selector);
    };
    selectors[0] = even.x, selectors[1] = odd.x, selectors[2] = even.y, selectors[3] = odd.y;
    a[0] = pair(place + (even.x >> 16), even.x);
    a[2] = pair(later, even.y);
    a[1] = pair(later + (odd.x >> 16), odd.x);
    a[3] = pair(later + (odd.y >> 16), odd.y);
  }
};

// Calls `use` with the number, a constant, of each tile that is there.
template <typename T, int BITS, typename Use>
__device__ __forceinline__ void for_tiles(const Walk<T, BITS>& walk, const Use& use) {
  use(std::integral_constant<int, 0>());
  if (walk.tile + 1 < walk.last) use(std::integral_constant<int, 1>());
  if (walk.tile + 2 < walk.last) use(std::integral_constant<int, 2>());
  if (walk.tile + 3 < walk.last) use(std::integral_constant<int, 3>());
}

constexpr size_t walk_bytes(int warps) {
  return static_cast<size_t>(warps) * WARP_BYTES + COMMON_BYTES;
}

}  // namespace
}  // namespace torchcoinfer::cuda
