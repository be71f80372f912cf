// Spreading survivors with tables of byte orders. NEON.

#include "cpu/sparse_spread.h"

#if TORCHCOINFER_ARM

#include <arm_neon.h>

namespace torchcoinfer {
namespace {

constexpr int VECTORS = GROUP_PLACES / 4;  // float vectors of a group: 1 n x 4 k each
constexpr uint8_t NOWHERE = 255;           // as an index of tbl and tbx: no byte is taken

// For a mask of 8 places of a byte, or of 4 places of a float: which of the next survivors goes where.
struct Table {
  uint8_t bytes[256][8];
  alignas(16) uint8_t floats[16][16];

  constexpr Table() : bytes{}, floats{} {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t taken = 0;
      for (int at = 0; at < 8; ++at) bytes[mask][at] = mask >> at & 1 ? taken++ : NOWHERE;
    }
    for (int mask = 0; mask < 16; ++mask) {
      uint8_t taken = 0;
      for (int at = 0; at < 16; ++at) floats[mask][at] = mask >> at / 4 & 1 ? taken++ : NOWHERE;
    }
  }
};
constexpr Table TABLE;

int64_t bytes(const uint8_t* survivors, const uint64_t* masks, int64_t words, const uint8_t* filler,
              uint8_t* places) {
  const uint8_t* next = survivors;
  uint8x8_t fillers[BLOCK_N / 2];
  for (int n = 0; n < BLOCK_N; n += 2) {
    const uint64_t two = 0x01010101ull * filler[n] | (0x01010101ull * filler[n + 1]) << 32;
    fillers[n / 2] = vcreate_u8(two);
  }
  for (int64_t w = 0; w < words; ++w)
#pragma GCC unroll 8
    for (int i = 0; i < BLOCK_N / 2; ++i, places += 8) {
      const int mask = static_cast<int>(masks[w] >> 8 * i & 255);
      vst1_u8(places, vtbx1_u8(fillers[i], vld1_u8(next), vld1_u8(TABLE.bytes[mask])));
      next += __builtin_popcount(static_cast<unsigned>(mask));
    }
  return next - survivors;
}

template <Dtype DTYPE>
inline float32x4_t load_four(const void* data, int64_t at) {
  if constexpr (DTYPE == Dtype::float32) return vld1q_f32(static_cast<const float*>(data) + at);
  const uint16x4_t halves = vld1_u16(static_cast<const uint16_t*>(data) + at);
  if constexpr (DTYPE == Dtype::float16) return vcvt_f32_f16(vreinterpret_f16_u16(halves));
  return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}

template <Dtype DTYPE>
int64_t spread_floats(const void* survivors, const uint64_t* masks, int64_t words, float* places) {
  int64_t taken = 0;
  for (int64_t w = 0; w < words; ++w)
    for (int v = 0; v < VECTORS; ++v, places += 4) {
      const int mask = static_cast<int>(masks[w] >> 4 * v & 15);
      const uint8x16_t some = vreinterpretq_u8_f32(load_four<DTYPE>(survivors, taken));
      vst1q_f32(places, vreinterpretq_f32_u8(vqtbl1q_u8(some, vld1q_u8(TABLE.floats[mask]))));
      taken += __builtin_popcount(static_cast<unsigned>(mask));
    }
  return taken;
}

int64_t floats(const void* survivors, Dtype dtype, const uint64_t* masks, int64_t words, float* places) {
  if (dtype == Dtype::float32) return spread_floats<Dtype::float32>(survivors, masks, words, places);
  if (dtype == Dtype::float16) return spread_floats<Dtype::float16>(survivors, masks, words, places);
  return spread_floats<Dtype::bfloat16>(survivors, masks, words, places);
}

void multiply(const float* places, int64_t words, const float* x, int64_t stride, int64_t rows, float* sums) {
  for (int64_t m = 0; m < rows; ++m, x += stride, sums += GROUP_PLACES) {
    float32x4_t part[VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) part[v] = vld1q_f32(sums + 4 * v);
    for (int64_t w = 0; w < words; ++w) {
      const float32x4_t four = vld1q_f32(x + GROUP_K * w);
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v)
        part[v] = vfmaq_f32(part[v], vld1q_f32(places + w * GROUP_PLACES + 4 * v), four);
    }
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) vst1q_f32(sums + 4 * v, part[v]);
  }
}

// Plain loops that are short and vectorize as they are.
int64_t count(const uint64_t* masks, int64_t words) {
  return SPREAD_SCALAR.count(masks, words);
}
void unpack(const uint8_t* chunks, int64_t count, int bits, int shift, uint8_t* codes) {
  SPREAD_SCALAR.unpack(chunks, count, bits, shift, codes);
}
void masks(const uint8_t* index, int64_t words, uint64_t* masks) {
  SPREAD_SCALAR.masks(index, words, masks);
}

}  // namespace

const Spread SPREAD_NEON = {count, masks, unpack, bytes, floats, nullptr, multiply, store_scalar};

}  // namespace torchcoinfer

#endif
