#include "cpu/activation.h"

#include <algorithm>
#include <cstring>

// Product and sum are rounded one after the other on every path: both halves must see the same bits.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

#define TORCHCOINFER_INLINE inline __attribute__((always_inline))

namespace torchcoinfer {
namespace {

constexpr int LANES = 16;
constexpr int64_t PIECE = 1024;     // values converted at once; a multiple of 8, so that pieces begin at a byte
constexpr float ROUND = 12582912.f;  // 1.5 * 2^23: adding and subtracting it rounds to nearest even

TORCHCOINFER_INLINE void load_piece(const void* x, Dtype dtype, int64_t start, int64_t count, float* values) {
  if (dtype == Dtype::float32) {
    std::memcpy(values, static_cast<const float*>(x) + start, count * sizeof(float));
  } else if (dtype == Dtype::float16) {
    for (int64_t i = 0; i < count; ++i) values[i] = to_float(static_cast<const Float16*>(x)[start + i]);
  } else {
    for (int64_t i = 0; i < count; ++i) values[i] = to_float(static_cast<const Bfloat16*>(x)[start + i]);
  }
}

TORCHCOINFER_INLINE void store_piece(const float* values, int64_t count, void* x, Dtype dtype, int64_t start) {
  if (dtype == Dtype::float32) {
    std::memcpy(static_cast<float*>(x) + start, values, count * sizeof(float));
  } else if (dtype == Dtype::float16) {
    for (int64_t i = 0; i < count; ++i) from_float(values[i], static_cast<Float16*>(x) + start + i);
  } else {
    for (int64_t i = 0; i < count; ++i) from_float(values[i], static_cast<Bfloat16*>(x) + start + i);
  }
}

struct Extremes {
  float low[LANES], high[LANES];
  int nan[LANES];  // comparisons drop NaN, so it is looked for by itself

  TORCHCOINFER_INLINE Extremes() {
    for (int j = 0; j < LANES; ++j) {
      low[j] = __builtin_inff();
      high[j] = -__builtin_inff();
      nan[j] = 0;
    }
  }
  TORCHCOINFER_INLINE void add(int lane, float value) {
    low[lane] = value < low[lane] ? value : low[lane];
    high[lane] = value > high[lane] ? value : high[lane];
    nan[lane] |= value != value;
  }
  TORCHCOINFER_INLINE void write(int lane, float top, float* scale, float* least) const {
    const float quiet = __builtin_nanf("");
    *scale = nan[lane] ? quiet : (high[lane] - low[lane]) / top;
    *least = nan[lane] ? quiet : low[lane];
  }
};

TORCHCOINFER_INLINE void token_range(const CodecShape& shape, const void* x, Dtype dtype, int64_t row, float* values,
                                     float* scale, float* low) {
  *scale = *low = 0;
  if (shape.n == 0) return;
  Extremes seen;
  for (int64_t start = 0; start < shape.n; start += PIECE) {
    const int64_t count = std::min(PIECE, shape.n - start);
    load_piece(x, dtype, row * shape.n + start, count, values);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
      for (int j = 0; j < LANES; ++j) seen.add(j, values[i + j]);
    for (; i < count; ++i) seen.add(0, values[i]);
  }
  for (int j = 1; j < LANES; ++j) {
    seen.nan[0] |= seen.nan[j];
    seen.low[0] = std::min(seen.low[0], seen.low[j]);
    seen.high[0] = std::max(seen.high[0], seen.high[j]);
  }
  seen.write(0, static_cast<float>((1 << shape.bits) - 1), scale, low);
}

// Up to LANES channels from `first`, over all rows.
TORCHCOINFER_INLINE void channel_range(const CodecShape& shape, const void* x, Dtype dtype, int64_t first, int count,
                                       float* scale, float* low) {
  const int64_t lines = shape.rows * shape.n / shape.channels;
  Extremes seen;
  float values[LANES] = {};
  for (int64_t line = 0; line < lines; ++line) {
    load_piece(x, dtype, line * shape.channels + first, count, values);
    for (int j = 0; j < LANES; ++j) seen.add(j, values[j]);
  }
  for (int j = 0; j < count; ++j) {
    scale[j] = low[j] = 0;
    if (lines) seen.write(j, static_cast<float>((1 << shape.bits) - 1), scale + j, low + j);
  }
}

TORCHCOINFER_INLINE void range_body(const CodecShape& shape, const void* x, Dtype dtype, int64_t begin, int64_t end,
                                    float* scale, float* low) {
  float values[PIECE];
  if (shape.by_token) {
    for (int64_t row = begin; row < end; ++row) token_range(shape, x, dtype, row, values, scale + row, low + row);
    return;
  }
  for (int64_t c = begin; c < end; c += LANES)
    channel_range(shape, x, dtype, c, static_cast<int>(std::min<int64_t>(LANES, end - c)), scale + c, low + c);
}

// Eight codes are exactly `bits` bytes.
TORCHCOINFER_INLINE void pack_eight(const uint8_t* codes, int bits, int64_t bytes, uint8_t* stream) {
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) word |= static_cast<uint64_t>(codes[i]) << (bits * i);
  for (int64_t i = 0; i < bytes; ++i) stream[i] = static_cast<uint8_t>(word >> (8 * i));
}

TORCHCOINFER_INLINE void unpack_eight(const uint8_t* stream, int bits, int64_t bytes, uint8_t* codes) {
  uint64_t word = 0;
  for (int64_t i = 0; i < bytes; ++i) word |= static_cast<uint64_t>(stream[i]) << (8 * i);
  for (int i = 0; i < 8; ++i) codes[i] = static_cast<uint8_t>(word >> (bits * i) & ((1 << bits) - 1));
}

// Scale and least value of each value of a piece.
TORCHCOINFER_INLINE void spread(const CodecShape& shape, const float* of, int64_t row, int64_t start, int64_t count,
                                float* values) {
  if (shape.by_token) {
    std::fill_n(values, count, of[row]);
    return;
  }
  int64_t channel = start % shape.channels;
  for (int64_t i = 0; i < count; ++i) {
    values[i] = of[channel];
    channel = channel + 1 == shape.channels ? 0 : channel + 1;
  }
}

TORCHCOINFER_INLINE void encode_body(const CodecShape& shape, const void* x, Dtype dtype, const float* scale,
                                     const float* low, int64_t begin, int64_t end, uint8_t* codes) {
  float values[PIECE], steps[PIECE], least[PIECE];
  uint8_t bytes[PIECE];
  const float top = static_cast<float>((1 << shape.bits) - 1);
  for (int64_t row = begin; row < end; ++row) {
    uint8_t* stream = codes + row * shape.row_bytes();
    for (int64_t start = 0; start < shape.n; start += PIECE) {
      const int64_t count = std::min(PIECE, shape.n - start), padded = (count + 7) / 8 * 8;
      load_piece(x, dtype, row * shape.n + start, count, values);
      spread(shape, scale, row, start, count, steps);
      spread(shape, low, row, start, count, least);
      for (int64_t i = 0; i < count; ++i) {
        const float code = (values[i] - least[i]) / steps[i];  // NaN where the scale is 0 or NaN: code 0
        const float clipped = code > 0 ? (code < top ? code : top) : 0.f;
        bytes[i] = static_cast<uint8_t>(static_cast<int>(clipped + ROUND - ROUND));
      }
      std::fill(bytes + count, bytes + padded, uint8_t{0});
      const int64_t length = (count * shape.bits + 7) / 8;
      for (int64_t i = 0, at = 0; i < padded; i += 8, at += shape.bits)
        pack_eight(bytes + i, shape.bits, std::min<int64_t>(shape.bits, length - at), stream + at);
      stream += length;
    }
  }
}

TORCHCOINFER_INLINE void decode_body(const CodecShape& shape, const uint8_t* codes, const float* scale,
                                     const float* low, Dtype dtype, int64_t begin, int64_t end, void* x) {
  float values[PIECE], steps[PIECE], least[PIECE];
  uint8_t bytes[PIECE];
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* stream = codes + row * shape.row_bytes();
    for (int64_t start = 0; start < shape.n; start += PIECE) {
      const int64_t count = std::min(PIECE, shape.n - start);
      const int64_t length = (count * shape.bits + 7) / 8;
      for (int64_t i = 0, at = 0; i < count; i += 8, at += shape.bits)
        unpack_eight(stream + at, shape.bits, std::min<int64_t>(shape.bits, length - at), bytes + i);
      spread(shape, scale, row, start, count, steps);
      spread(shape, low, row, start, count, least);
      for (int64_t i = 0; i < count; ++i) values[i] = steps[i] * static_cast<float>(bytes[i]) + least[i];
      store_piece(values, count, x, dtype, row * shape.n + start);
      stream += length;
    }
  }
}

#define TORCHCOINFER_VARIANTS(name, parameters, arguments) \
  void name##_scalar parameters {                          \
    name##_body arguments;                                 \
  }                                                        \
  TORCHCOINFER_AVX2 void name##_avx2 parameters {          \
    name##_body arguments;                                 \
  }                                                        \
  TORCHCOINFER_AVX512 void name##_avx512 parameters {      \
    name##_body arguments;                                 \
  }

TORCHCOINFER_VARIANTS(range,
                      (const CodecShape& shape, const void* x, Dtype dtype, int64_t begin, int64_t end, float* scale,
                       float* low),
                      (shape, x, dtype, begin, end, scale, low))
TORCHCOINFER_VARIANTS(encode,
                      (const CodecShape& shape, const void* x, Dtype dtype, const float* scale, const float* low,
                       int64_t begin, int64_t end, uint8_t* codes),
                      (shape, x, dtype, scale, low, begin, end, codes))
TORCHCOINFER_VARIANTS(decode,
                      (const CodecShape& shape, const uint8_t* codes, const float* scale, const float* low,
                       Dtype dtype, int64_t begin, int64_t end, void* x),
                      (shape, codes, scale, low, dtype, begin, end, x))

template <typename Function>
Function* pick(Isa isa, Function* scalar, Function* avx2, Function* avx512) {
  return has_avx512(isa) ? avx512 : isa == Isa::avx2 ? avx2 : scalar;
}

}  // namespace

void activation_range(const CodecShape& shape, const void* x, Dtype dtype, Isa isa, int64_t begin, int64_t end,
                      float* scale, float* low) {
  pick(isa, range_scalar, range_avx2, range_avx512)(shape, x, dtype, begin, end, scale, low);
}

void encode_rows(const CodecShape& shape, const void* x, Dtype dtype, const float* scale, const float* low, Isa isa,
                 int64_t begin, int64_t end, uint8_t* codes) {
  pick(isa, encode_scalar, encode_avx2, encode_avx512)(shape, x, dtype, scale, low, begin, end, codes);
}

void decode_rows(const CodecShape& shape, const uint8_t* codes, const float* scale, const float* low, Dtype dtype,
                 Isa isa, int64_t begin, int64_t end, void* x) {
  pick(isa, decode_scalar, decode_avx2, decode_avx512)(shape, codes, scale, low, dtype, begin, end, x);
}

}  // namespace torchcoinfer
