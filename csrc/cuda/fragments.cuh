// What the fast kernels share: a lane's packed words of a quad, codes to operands of mma, 16 bytes of x, the sum over
// blocks that split K. The device order (layout_device.h) is made for these: lane = 4 g + t holds rows g and g + 8 and
// columns 8t .. 8t + 7 of a tile; step s of mma_16816 takes columns 8t + 4s .. 8t + 4s + 3.

#pragma once

#include "cuda/element.cuh"
#include "cuda/load.cuh"
#include "cuda/mma.cuh"

namespace torchcoinfer::cuda {

template <typename To, typename From>
__device__ __forceinline__ To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <typename T>
using PairOf = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

// a - b, two values of T each.
template <typename T>
__device__ __forceinline__ uint32_t subtract_pairs(uint32_t a, uint32_t b) {
  return same_bits<uint32_t>(__hsub2(same_bits<PairOf<T>>(a), same_bits<PairOf<T>>(b)));
}

template <typename T>
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
  if constexpr (std::is_same_v<T, __half>)
    return same_bits<uint32_t>(__floats2half2_rn(low, high));
  else
    return same_bits<uint32_t>(__floats2bfloat162_rn(low, high));
}

template <typename T>
__device__ __forceinline__ float2 floats_of(uint32_t pair) {
  if constexpr (std::is_same_v<T, __half>)
    return __half22float2(same_bits<__half2>(pair));
  else
    return __bfloat1622float2(same_bits<__nv_bfloat162>(pair));
}

// --- two codes to two values of T less the row's zero point, exactly: integers of at most 8 bits and a sign
//
// A 16-bit float whose lowest mantissa bit is worth 1 (1024 in fp16, 128 in bf16) with a code or'ed in is that number
// plus the code. bf16 has room for 7 bits so: 8-bit codes go by 2^23 in float32, whose upper halves are the result.

constexpr uint32_t HALF_1024 = 0x64006400u, BFLOAT_128 = 0x43004300u, FLOAT_2_23 = 0x4b000000u;

// The number that codes of less than 8 bits are or'ed into.
template <typename T>
constexpr uint32_t LIFTED = std::is_same_v<T, __half> ? HALF_1024 : BFLOAT_128;

// The zero point as `less_zero` takes it.
template <typename T, int BITS>
__device__ __forceinline__ uint32_t zero_operand(int zero) {
  if constexpr (std::is_same_v<T, __half>)
    return HALF_1024 | static_cast<uint32_t>(zero) * 0x00010001u;
  else if constexpr (BITS == 8)
    return __float_as_uint(static_cast<float>((1 << 23) + zero));
  else
    return (__float_as_uint(static_cast<float>(zero)) >> 16) * 0x00010001u;
}

// Bytes LOW and HIGH of `codes` (0: lowest) less the zero point.
template <typename T, int LOW, int HIGH>
__device__ __forceinline__ uint32_t bytes_less_zero(uint32_t codes, uint32_t zero) {
  if constexpr (std::is_same_v<T, __half>) {
    return subtract_pairs<T>(__byte_perm(codes, HALF_1024 >> 8, 0x4040 | LOW | HIGH << 8), zero);
  } else {
    const float low = __uint_as_float(__byte_perm(codes, FLOAT_2_23, 0x7650 | LOW)) - __uint_as_float(zero);
    const float high = __uint_as_float(__byte_perm(codes, FLOAT_2_23, 0x7650 | HIGH)) - __uint_as_float(zero);
    return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
  }
}

// codes: one in the lowest bits of each half, the other bits 0, less than 8 of them; or'ed into LIFTED<T>.
template <typename T>
__device__ __forceinline__ uint32_t lifted_less_zero(uint32_t lifted, uint32_t zero) {
  if constexpr (std::is_same_v<T, __half>)
    return subtract_pairs<T>(lifted, zero);
  else  // a zero point of up to 255 is exact, 128 more would not be
    return subtract_pairs<T>(subtract_pairs<T>(lifted, BFLOAT_128), zero);
}

template <typename T, int BITS>
__device__ __forceinline__ uint32_t less_zero(uint32_t codes, uint32_t zero) {
  if constexpr (BITS == 8)
    return bytes_less_zero<T, 0, 2>(codes, zero);
  else
    return lifted_less_zero<T>(codes | LIFTED<T>, zero);
}

// --- dense: a lane's words of a quad

// Planes one after another; within a plane tile by tile: 2p words of p bits a field.
template <int BITS>
struct QuadWords {
  uint32_t words[2 * BITS];
};

template <int BITS>
constexpr int64_t QUAD_BYTES = QUAD * 64 * BITS;

// First word of a plane in QuadWords.
__device__ constexpr int plane_words(int bits, int index) {
  return 2 * plane(bits, index).shift;
}

// A whole quad, from global memory where it is read once (STREAMED) or from shared memory.
template <int BITS, bool STREAMED>
__device__ __forceinline__ void load_quad(QuadWords<BITS>& quad, const uint8_t* from, int lane) {
#pragma unroll
  for (int index = 0; index < plane_count(BITS); ++index) {
    const Plane p = plane(BITS, index);
    const uint8_t* of_plane = from + QUAD * p.offset;
    const int first = plane_words(BITS, index);
    if (p.bits == 1) {
      const uint2 pair = *reinterpret_cast<const uint2*>(of_plane + 8 * lane);
      quad.words[first] = pair.x, quad.words[first + 1] = pair.y;
      continue;
    }
#pragma unroll
    for (int round = 0; round < p.bits / 2; ++round) {
      const auto* place = reinterpret_cast<const uint4*>(of_plane + round * ROUND_BYTES) + lane;
      uint4 four;
      if constexpr (STREAMED)
        four = load_once(place);
      else
        four = *place;
      uint32_t* words = quad.words + first + 4 * round;
      words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
    }
  }
}

// The `tiles` (1 .. 3) tiles after the last quad, as if they were a quad's first; the others get codes 0.
template <int BITS>
__device__ __forceinline__ void load_rest(QuadWords<BITS>& quad, const uint8_t* from, int tiles, int lane) {
#pragma unroll
  for (int i = 0; i < 2 * BITS; ++i) quad.words[i] = 0;
#pragma unroll
  for (int u = 0; u < QUAD - 1; ++u) {
    if (u >= tiles) break;
#pragma unroll
    for (int index = 0; index < plane_count(BITS); ++index) {
      const Plane p = plane(BITS, index);
      const int first = plane_words(BITS, index);
      const uint8_t* place = from + u * tile_bytes(BITS) + p.offset + lane * 2 * p.bits;
      if (p.bits == 1) {
        const uint32_t both = *reinterpret_cast<const uint16_t*>(place);
        quad.words[first + u / 2] |= ((both & 0xffu) | (both & 0xff00u) << 8) << 8 * (u % 2);
      } else {
#pragma unroll
        for (int word = 0; word < p.bits / 2; ++word)
          quad.words[first + u * (p.bits / 2) + word] = reinterpret_cast<const uint32_t*>(place)[word];
      }
    }
  }
}

// Columns 8t + 2j and the next of row g + 8h in tile u, one code in each half, or'ed into `codes`. Not for 8 bits.
template <int BITS>
__device__ __forceinline__ uint32_t code_pair(const QuadWords<BITS>& quad, int u, int h, int j, uint32_t codes) {
#pragma unroll
  for (int index = 0; index < plane_count(BITS); ++index) {
    const Plane p = plane(BITS, index);
    const int first = plane_words(BITS, index);
    const uint32_t word = quad.words[first + (p.bits == 4 ? 2 * u + h : p.bits == 2 ? u : u / 2)];
    const int at = p.bits == 4 ? 4 * j : p.bits == 2 ? 2 * (4 * h + j) : 8 * (u % 2) + 4 * h + j;
    const uint32_t mask = (((1u << p.bits) - 1u) << p.shift) * 0x00010001u;
    codes = masked_into(codes, at >= p.shift ? word >> (at - p.shift) : word << (p.shift - at), mask);
  }
  return codes;
}

// Operand A of mma_16816 step s of tile u. zero: of rows g and g + 8, from zero_operand.
template <typename T, int BITS>
__device__ __forceinline__ void weight_fragment(uint32_t (&a)[4], const QuadWords<BITS>& quad, int u, int s,
                                                const uint32_t (&zero)[2]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int h = r % 2, j = 2 * s + r / 2;
    if constexpr (BITS == 8) {
      const uint32_t word = quad.words[4 * u + 2 * h + j / 2];
      a[r] = j % 2 ? bytes_less_zero<T, 2, 3>(word, zero[h]) : bytes_less_zero<T, 0, 1>(word, zero[h]);
    } else {
      a[r] = lifted_less_zero<T>(code_pair<BITS>(quad, u, h, j, LIFTED<T>), zero[h]);
    }
  }
}

// Four codes of row g + 8h in tile u as bytes, half an operand A of mma_16832; x stands in the order of `byte_place`.
// 8 bits: columns 8t + 4 half and three more; else 8t + {0, 4, 1, 5} + 2 half.
template <int BITS>
__device__ __forceinline__ uint32_t code_bytes(const QuadWords<BITS>& quad, int u, int h, int half) {
  if constexpr (BITS == 8) return quad.words[4 * u + 2 * h + half];
  uint32_t codes = 0;
#pragma unroll
  for (int index = 0; index < plane_count(BITS); ++index) {
    const Plane p = plane(BITS, index);
    const int first = plane_words(BITS, index);
    if (p.bits == 4) {
      codes |= quad.words[first + 2 * u + h] >> 4 * half & 0x0f0f0f0fu;
    } else if (p.bits == 2) {
      const uint32_t word = quad.words[first + u] >> (8 * h + 2 * half);
      codes |= ((word & 0x00030003u) | (word & 0x00300030u) << 4) << p.shift;
    } else {
      const uint32_t word = quad.words[first + u / 2] >> (8 * (u % 2) + 4 * h + half);
      codes |= ((word & 0x00010001u) | (word & 0x00040004u) << 6) << p.shift;
    }
  }
  return codes;
}

// --- x: a lane's 16 bytes of a tile are both steps of operand B

// Columns 8t .. 8t + 7 of a row, zeros where `wanted` is false; kept in L1, for others read them too.
__device__ __forceinline__ uint4 load_values(const void* place, bool wanted) {
  return wanted ? __ldg(static_cast<const uint4*>(place)) : make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void values_fragment(uint32_t (&b)[2], const uint4& values, int s) {
  b[0] = s ? values.z : values.x;
  b[1] = s ? values.w : values.y;
}

// --- K split over blocks

// y [rows, N] of type = (sum over splits of partials [splits, rows, N]) * row_scales + bias, in the order of the splits,
// so that every run gives the same bits. row_scales [rows] and bias [N] may be nullptr.
const char* reduce_splits(const float* partials, int splits, int64_t rows, int64_t N, const float* row_scales,
                          const float* bias, void* y, Element type, void* stream);

// Multiprocessors of the current device.
inline int64_t processor_count() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return count;
}

// The most dynamic shared memory that a block of the current device may have.
inline int64_t shared_bytes() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 48 << 10;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 48 << 10;
  return bytes;
}

// In how many parts blocks split K: so that `room` of them have work, if each part keeps at least `least` of the quads.
// A split costs a launch more, a few microseconds: what is done sooner is not split.
inline int64_t split_count(int64_t blocks, int64_t quads, int64_t least, int64_t room) {
  const int64_t wanted = blocks ? room / blocks : 1, most = quads / least;
  const int64_t count = wanted < most ? wanted : most;
  return count < 1 ? 1 : count;
}

}  // namespace torchcoinfer::cuda
