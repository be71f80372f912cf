// A lane's part of one n-block's quad in 2:4, from a slot of shared memory to operand A of mma.sp.

#pragma once

#include "cuda/fragments.cuh"

namespace torchcoinfer::cuda {
namespace {

// scale * (code - zero) of two codes in the low bytes of the halves of a word. The difference is exact, the product is
// rounded once. EXACT: the difference alone; the scale, a float32, meets the sum of its group.
template <typename T, int BITS, bool EXACT>
struct Dequantizer {
  uint32_t scale, zero;

  __device__ __forceinline__ uint32_t values(uint32_t codes) const {
    const uint32_t steps = less_zero<T, BITS>(codes, zero);
    if constexpr (EXACT) return steps;
    return same_bits<uint32_t>(__hmul2(same_bits<PairOf<T>>(steps), same_bits<PairOf<T>>(scale)));
  }
};

// The two codes of register r of tile u in a quad's words (layout_device.h), in the low bytes of a word's halves.
template <int BITS>
__device__ __forceinline__ uint32_t survivor_codes(const uint32_t (&words)[BITS], int u, int r) {
  if constexpr (BITS == 8) {
    return __byte_perm(words[2 * u + r / 2], 0, r % 2 ? 0x4342 : 0x4140);
  } else {
    constexpr int LOW = plane(BITS, 0).bits, HIGH = BITS - LOW;
    uint32_t codes = LOW == 4 ? words[u] >> 4 * r & 0x000f000fu : words[u / 2] >> (8 * (u % 2) + 2 * r) & 0x00030003u;
    if constexpr (HIGH == 2) codes |= (words[LOW + u / 2] >> (8 * (u % 2) + 2 * r) & 0x00030003u) << LOW;
    if constexpr (HIGH == 1) codes |= (words[LOW] >> (4 * u + r) & 0x00010001u) << LOW;
    return codes;
  }
}

// A lane's words of a plane of P bits in a quad.
template <int P>
__device__ __forceinline__ void load_survivor_plane(uint32_t* to, const unsigned char* from, int lane) {
  if constexpr (P == 1) {
    to[0] = reinterpret_cast<const uint32_t*>(from)[lane];
  } else if constexpr (P == 2) {
    const uint2 two = reinterpret_cast<const uint2*>(from)[lane];
    to[0] = two.x, to[1] = two.y;
  } else {
#pragma unroll
    for (int round = 0; round < P / 4; ++round) {
      const uint4 four = reinterpret_cast<const uint4*>(from)[round * LANES + lane];
      to[4 * round] = four.x, to[4 * round + 1] = four.y, to[4 * round + 2] = four.z, to[4 * round + 3] = four.w;
    }
  }
}

// The same of all planes.
template <int BITS>
__device__ __forceinline__ void load_survivors(uint32_t (&words)[BITS], const unsigned char* from, int lane) {
  constexpr int LOW = plane(BITS, 0).bits;
  load_survivor_plane<LOW>(words, from, lane);
  if constexpr (LOW < BITS) load_survivor_plane<BITS - LOW>(words + LOW, from + QUAD * LANES * LOW, lane);
}

// Where a slot's parts begin.
struct Places {
  int index, scales, zeros;  // zeros 0: symmetric
  int grids;                 // groups of a quad: 1, 2 or 4
  bool half_scales;          // float16, else bfloat16
};

template <typename T, int BITS, bool EXACT>
struct Lane24 {
  const unsigned char* slot;
  Places at;
  int lane;
  uint2 index;
  uint32_t words[BITS ? BITS : 1];
  Dequantizer<T, BITS, EXACT> rows[2];  // g and g + 8

  __device__ __forceinline__ void load(const unsigned char* of_slot, const Places& places, int of_lane) {
    slot = of_slot, at = places, lane = of_lane;
    index = reinterpret_cast<const uint2*>(slot + at.index)[lane];
    if constexpr (BITS != 0) load_survivors(words, slot, lane);
  }

  __device__ __forceinline__ uint32_t metadata(int u) const {
    return u < 2 ? index.x : index.y;
  }

  // After tile u, the last of its group: sums += scale * group.
  template <int MT>
  __device__ __forceinline__ void close_group(int u, float (&group)[MT][4], float (&sums)[MT][4]) const {
    static_assert(EXACT, "others have scaled their codes");
    if ((u + 1) * at.grids % QUAD != 0) return;
#pragma unroll
    for (int f = 0; f < MT; ++f)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[f][i] += __uint_as_float(rows[i / 2].scale) * group[f][i];
        group[f][i] = 0.f;
      }
  }

  // Operand A of tile u; tiles come in order, for the scales change with them.
  __device__ __forceinline__ void fragment(int u, uint32_t (&a)[4]) {
    if constexpr (BITS == 0) {
      const uint4 four = reinterpret_cast<const uint4*>(slot)[u * LANES + lane];
      a[0] = four.x, a[1] = four.y, a[2] = four.z, a[3] = four.w;
    } else {
      if (u * at.grids % QUAD == 0) set_grid(u * at.grids / QUAD);
#pragma unroll
      for (int r = 0; r < 4; ++r) a[r] = rows[r % 2].values(survivor_codes<BITS>(words, u, r));
    }
  }

  __device__ __forceinline__ void set_grid(int group) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int n = group * BLOCK_N + lane / 4 + 8 * h;
      uint32_t scale = reinterpret_cast<const uint16_t*>(slot + at.scales)[n];
      rows[h].zero = zero_operand<T, BITS>(at.zeros ? slot[at.zeros + n] : implicit_zero(BITS));
      if constexpr (EXACT) {
        rows[h].scale = at.half_scales ? __float_as_uint(__half2float(__ushort_as_half(static_cast<unsigned short>(scale))))
                                       : scale << 16;
        continue;
      }
      if (std::is_same_v<T, __nv_bfloat16> && at.half_scales)
        scale = __float_as_uint(__bfloat162float(
                    __float2bfloat16_rn(__half2float(__ushort_as_half(static_cast<unsigned short>(scale)))))) >>
                16;
      rows[h].scale = scale * 0x00010001u;
    }
  }
};

// Plane P of the `there` tiles after the last quad, from its first tile, as the words that a quad would hold.
template <int P>
__device__ inline void rest_of_plane(const unsigned char* from, int there, int lane, int tile_bytes,
                                     unsigned char* to) {
  constexpr int VECTOR = P < 4 ? P : 4;
  uint32_t words[P] = {};
#pragma unroll
  for (int u = 0; u < QUAD; ++u) {
    if (u >= there) continue;
    const unsigned char* at = from + u * tile_bytes + lane * P;
    if constexpr (P == 8) {
      words[2 * u] = reinterpret_cast<const uint32_t*>(at)[0];
      words[2 * u + 1] = reinterpret_cast<const uint32_t*>(at)[1];
    } else if constexpr (P == 4) {
      words[u] = *reinterpret_cast<const uint32_t*>(at);
    } else if constexpr (P == 2) {
      const uint32_t both = *reinterpret_cast<const uint16_t*>(at);
      words[u / 2] |= ((both & 0xffu) | (both & 0xff00u) << 8) << 8 * (u % 2);
    } else {
      words[0] |= ((*at & 15u) | (*at & 0xf0u) << 12) << 4 * u;
    }
  }
#pragma unroll
  for (int v = 0; v < P; ++v)
    reinterpret_cast<uint32_t*>(to + v / VECTOR * (LANES * 4 * VECTOR))[VECTOR * lane + v % VECTOR] = words[v];
}

}  // namespace
}  // namespace torchcoinfer::cuda
