// Sparse codes as dense 8-bit codes that stand for the same weight, in the device order: what int8 codes of x multiply
// exactly, by the dense kernel. Here 2:4; bitmap in fast_sparse_bitmap_linear.cuh.
//
// A warp expands quads of n-blocks. Lane (g, t) finds its survivors of groups t and t + 4 of rows g and g + 8 (the device
// order of 2:4), makes a word of each group, and swaps two words with its neighbor, so that it has 16 bytes of the
// result: rows g and g + 8, groups 2t and 2t + 1 of one lane of the dense order.

#include "cuda/fast_sparse24_lane.cuh"
#include "cuda/fast_sparse_bitmap.h"
#include "cuda/sparse_element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;
constexpr int WIDE = 8;  // bits of the result
constexpr int WIDE_TILE = static_cast<int>(tile_bytes(WIDE));
constexpr uint32_t IN_ALL_BYTES = 0x01010101u, IN_HALVES = 0x00010001u;

// What a pruned weight becomes, and what is added to a code: the zero point of 8 bits is another one.
struct Point {
  uint32_t pruned, added;
};

__device__ __forceinline__ Point point_of(const SparseMatrix& w, int64_t block, int64_t tile, int n) {
  if (!w.zeros)
    return {static_cast<uint32_t>(implicit_zero(WIDE)), static_cast<uint32_t>(implicit_zero(WIDE) - implicit_zero(w.bits))};
  const int64_t group = w.group_size ? tile * TILE_K / w.group_size : 0;
  return {__ldg(w.zeros + (block * group_count(w.K, w.group_size) + group) * BLOCK_N + n), 0};
}

// The four bytes of a group whose survivors are the low bytes of the halves of `codes`, at the columns of `nibble`.
__device__ __forceinline__ uint32_t group_bytes(uint32_t codes, uint32_t nibble, const Point& point) {
  const uint32_t selector = 0x4444u ^ 4u << 4 * (nibble & 3) ^ 6u << 4 * (nibble >> 2);  // byte 0, byte 2, else pruned
  return __byte_perm(codes + point.added * IN_HALVES, point.pruned * IN_ALL_BYTES, selector);
}

template <int BITS>
__device__ __forceinline__ void expand_quad(const SparseMatrix& w, int64_t block, int64_t tiles, int64_t first,
                                            int lane, uint4* to) {
  uint32_t words[BITS];
  const int64_t tile = block * tiles + first;
  load_survivors(words, static_cast<const unsigned char*>(w.values) + tile * LANES * BITS, lane);
  const uint2 index = reinterpret_cast<const uint2*>(w.index + tile * INDEX_BYTES)[lane];
  const int g = lane / 4, t = lane % 4;
  const bool odd = t % 2;
#pragma unroll
  for (int u = 0; u < QUAD; ++u) {
    uint32_t groups[2][2];  // group t + 4 half of row g + 8h
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t nibbles = __shfl_sync(ALL_LANES, u < 2 ? index.x : index.y, 4 * g + 2 * (u % 2) + half) >> 4 * t;
#pragma unroll
      for (int h = 0; h < 2; ++h)
        groups[h][half] = group_bytes(survivor_codes<BITS>(words, u, h + 2 * half), nibbles >> 16 * h & 15u,
                                      point_of(w, block, first + u, g + 8 * h));
    }
    uint32_t own[2], other[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      own[h] = odd ? groups[h][1] : groups[h][0];
      other[h] = __shfl_xor_sync(ALL_LANES, odd ? groups[h][0] : groups[h][1], 1);
    }
    const uint4 even_first = make_uint4(own[0], other[0], own[1], other[1]);
    const uint4 odd_first = make_uint4(other[0], own[0], other[1], own[1]);
    to[u * LANES + 4 * g + t / 2 + (odd ? 2 : 0)] = odd ? odd_first : even_first;
  }
}

// The same of one tile in any order.
__device__ void expand_tile(const SparseMatrix& w, int64_t block, int64_t tiles, int64_t tile, int lane, uint4* to) {
  auto* words = reinterpret_cast<uint32_t*>(to + lane);
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    const int n = lane / 4 + 8 * (i / 2), group = 2 * (lane % 4) + i % 2;
    const auto code = [&](int slot) {
      return static_cast<uint32_t>(paired_code(w, block, tiles, tile, n, group, slot));
    };
    const auto nibble = static_cast<uint32_t>(paired_nibble(w, block, tiles, tile, n, group));
    words[i] = group_bytes(code(0) | code(1) << 16, nibble, point_of(w, block, tile, n));
  }
}

template <int BITS>
__global__ void __launch_bounds__(THREADS) expand(SparseMatrix w, bool in_quads, uint8_t* out) {
  const int lane = threadIdx.x % WARP;
  const int64_t tiles = ceil_div(w.K, TILE_K), quads = ceil_div(tiles, QUAD), all = ceil_div(w.N, BLOCK_N) * quads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (THREADS / WARP);
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP; at < all; at += step) {
    const int64_t block = at / quads, first = at % quads * QUAD;
    auto* to = reinterpret_cast<uint4*>(out + (block * tiles + first) * WIDE_TILE);
    if (in_quads && first + QUAD <= tiles) {
      expand_quad<BITS>(w, block, tiles, first, lane, to);
      continue;
    }
    for (int64_t tile = first; tile < first + QUAD && tile < tiles; ++tile, to += LANES)
      expand_tile(w, block, tiles, tile, lane, to);
  }
}

}  // namespace

bool expand_serves(const SparseMatrix& w) {
  if (!w.bits || w.K == 0 || w.N == 0) return false;
  const auto aligned = [](const void* place) { return reinterpret_cast<uintptr_t>(place) % LANE_BYTES == 0; };
  return aligned(w.values) && (!w.paired || (w.layout == DEVICE_LAYOUT && aligned(w.index)));
}

const char* expand_codes(const SparseMatrix& w, uint8_t* out, void* stream) {
  if (w.K == 0 || w.N == 0) return nullptr;
  if (!w.paired) {
    const auto kernel = w.bits == 2   ? run_expand<2>
                        : w.bits == 3 ? run_expand<3>
                        : w.bits == 4 ? run_expand<4>
                        : w.bits == 5 ? run_expand<5>
                        : w.bits == 6 ? run_expand<6>
                                      : run_expand<8>;
    return kernel({w, 0, nullptr, 0, 0, nullptr, nullptr, out, stream});
  }
  const auto kernel = w.bits == 2   ? expand<2>
                      : w.bits == 3 ? expand<3>
                      : w.bits == 4 ? expand<4>
                      : w.bits == 5 ? expand<5>
                      : w.bits == 6 ? expand<6>
                                    : expand<8>;
  const int64_t quads = ceil_div(w.N, BLOCK_N) * ceil_div(ceil_div(w.K, TILE_K), QUAD);
  launch(kernel, grid_size(ceil_div(quads, THREADS / WARP), MOST_BLOCKS), THREADS, 0, stream, w, expand_serves(w), out);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
