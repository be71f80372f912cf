// Packing, unpacking, quantizing and dequantizing of the dense format (layout.h), over a range of n-blocks [begin, end).

#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "layout.h"

namespace torchcoinfer {

// Decodes one tile, k-major: codes[k * 16 + n].
inline void decode_tile(const uint8_t* tile, int bits, uint8_t* codes) {
  for (int index = 0; index < plane_count(bits); ++index) {
    const Plane p = plane(bits, index);
    const int mask = (1 << p.bits) - 1, per_vector = TILE_K / p.bits;
    for (int k = 0; k < TILE_K; k += 4) {  // four k share a vector and a field
      const int shift = field_of(p.bits, 0, k).shift;
      const uint8_t* vector = tile + p.offset + VECTOR_BYTES * (k / per_vector);
      for (int i = 0; i < 4; ++i) {
        uint8_t* out = codes + (k + i) * BLOCK_N;
        for (int n = 0; n < BLOCK_N; ++n) {
          const int part = (vector[4 * n + i] >> shift & mask) << p.shift;
          out[n] = static_cast<uint8_t>(index ? out[n] | part : part);
        }
      }
    }
  }
}

// codes: uint8 [N, K], each < 2^bits;  packed: uint8 [NB, KT, 64 * bits]
void pack_codes(const uint8_t* codes, int bits, int64_t N, int64_t K, uint8_t* packed, int64_t begin, int64_t end);
void unpack_codes(const uint8_t* packed, int bits, int64_t N, int64_t K, uint8_t* codes, int64_t begin, int64_t end);

// One matrix in the dense format, as plain pointers.
struct QuantMatrix {
  const uint8_t* packed;  // [NB, KT, 64 * bits]
  const void* scales;     // [NB, G, 16] of scale_dtype
  const uint8_t* zeros;   // [NB, G, 16], nullptr: symmetric
  Dtype scale_dtype;
  int bits;
  int64_t group_size;  // 0: the whole row
  int64_t N;
  int64_t K;
};

// What quantize_blocks writes.
struct QuantOutput {
  uint8_t* packed;  // [NB, KT, 64 * bits], zeroed by the caller
  void* scales;     // [NB, G, 16] of scale_dtype, zeroed
  uint8_t* zeros;   // [NB, G, 16], zeroed; nullptr: symmetric
  Dtype scale_dtype;
};

// Round-to-nearest quantization of weight [N, K] per (row, group): symmetric from the absolute maximum (scale =
// absmax / (2^(b-1) - 1)), asymmetric from minimum and maximum, both widened to contain 0 (scale = (max - min) /
// (2^b - 1), zero = rint(-min / scale)). The scale is rounded to scale_dtype before the codes are taken.
// False: a weight is NaN or infinite, or a scale overflows scale_dtype (the output is then meaningless).
bool quantize_blocks(const void* weight, Dtype dtype, int bits, int64_t group_size, int64_t N, int64_t K,
                     const QuantOutput& out, int64_t begin, int64_t end);

// out: [N, K] of dtype
void dequantize_blocks(const QuantMatrix& matrix, void* out, Dtype dtype, int64_t begin, int64_t end);

}  // namespace torchcoinfer
