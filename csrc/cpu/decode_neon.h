// Decoding of dense tiles (layout.h) in NEON registers: signed bytes around a center, and floats.
//
// Part p of quad q holds n = 4p .. 4p + 3, four bytes each: byte i of lane j is k = 4q + i of n = 4p + j.

#pragma once

#include "cpu/isa.h"

#if TORCHCOINFER_ARM

#include <arm_neon.h>

#include "cpu/pack.h"
#include "layout.h"

#define TORCHCOINFER_NEON_INLINE static inline __attribute__((always_inline))

namespace torchcoinfer::neon {

constexpr int QUADS = TILE_K / 4;
constexpr int PARTS = BLOCK_N / 4;
constexpr int PART_BYTES = VECTOR_BYTES / PARTS;

template <int BITS>
TORCHCOINFER_NEON_INLINE uint8x16_t decode_part(const uint8_t* tile, int q, int p) {
  constexpr Plane low = plane(BITS, 0);
  constexpr int fields = 8 / low.bits;
  uint8x16_t codes = vld1q_u8(tile + VECTOR_BYTES * (q / fields) + PART_BYTES * p);
  if constexpr (fields > 1) {
    codes = codes >> low.bits * (q % fields);
    if (q % fields + 1 < fields) codes = codes & vdupq_n_u8((1 << low.bits) - 1);
  }
  if constexpr (plane_count(BITS) == 2) {
    constexpr Plane high = plane(BITS, 1);
    constexpr int high_fields = 8 / high.bits;
    const uint8x16_t vector = vld1q_u8(tile + high.offset + VECTOR_BYTES * (q / high_fields) + PART_BYTES * p);
    const int shift = high.bits * (q % high_fields) - high.shift;
    const uint8x16_t moved = shift >= 0 ? vector >> shift : vector << -shift;
    codes = vbslq_u8(vdupq_n_u8(((1 << high.bits) - 1) << high.shift), moved, codes);
  }
  return codes;
}

// What signed bytes are counted from: codes of up to 6 bits are positive as they are.
constexpr int byte_center(int bits) {
  return bits == 8 ? 128 : 0;
}

// code - byte_center(BITS)
template <int BITS>
TORCHCOINFER_NEON_INLINE int8x16_t decode_signed(const uint8_t* tile, int q, int p) {
  const uint8x16_t codes = decode_part<BITS>(tile, q, p);
  return vreinterpretq_s8_u8(byte_center(BITS) ? codes ^ vdupq_n_u8(0x80) : codes);
}

// Floats of byte i of each lane: the byte goes to the top of the lane, which is then read with 24 fraction bits.
struct ByteFloats {
  uint8x16_t order[4];

  ByteFloats() {
    for (int i = 0; i < 4; ++i) {
      const uint32_t top = static_cast<uint32_t>(i) << 24 | 0xffffff;  // 255: no byte, 0
      const uint32_t lanes[4] = {top, top + (4u << 24), top + (8u << 24), top + (12u << 24)};
      order[i] = vreinterpretq_u8_u32(vld1q_u32(lanes));
    }
  }
  __attribute__((always_inline)) float32x4_t of_byte(uint8x16_t bytes, int i) const {
    return vcvtq_n_f32_s32(vreinterpretq_s32_u8(vqtbl1q_u8(bytes, order[i])), 24);
  }
};

// Scales of a block and group, n = 4p .. 4p + 3.
TORCHCOINFER_NEON_INLINE float32x4_t load_scales(const QuantMatrix& w, int64_t place, int p) {
  const int64_t index = place * BLOCK_N + 4 * p;
  if (w.scale_dtype == Dtype::float32) return vld1q_f32(static_cast<const float*>(w.scales) + index);
  const uint16x4_t halves = vld1_u16(static_cast<const uint16_t*>(w.scales) + index);
  if (w.scale_dtype == Dtype::float16) return vcvt_f32_f16(vreinterpret_f16_u16(halves));
  return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}

// Their zero points, counted from `center`.
TORCHCOINFER_NEON_INLINE int32x4_t load_zeros(const QuantMatrix& w, int64_t place, int p, int center) {
  if (!w.zeros) return vdupq_n_s32(implicit_zero(w.bits) - center);
  const uint8_t* zeros = w.zeros + place * BLOCK_N + 4 * p;
  int32x4_t values = vdupq_n_s32(0);
  values = vsetq_lane_s32(zeros[0], values, 0);
  values = vsetq_lane_s32(zeros[1], values, 1);
  values = vsetq_lane_s32(zeros[2], values, 2);
  values = vsetq_lane_s32(zeros[3], values, 3);
  return vsubq_s32(values, vdupq_n_s32(center));
}

}  // namespace torchcoinfer::neon

#endif
