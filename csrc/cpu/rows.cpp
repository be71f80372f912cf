#include "cpu/rows.h"

#include <algorithm>

#include "cpu/buffer.h"

// The bodies are plain loops that the compiler vectorizes once per instruction set; all give the same bits.
#define TORCHCOINFER_INLINE inline __attribute__((always_inline))

namespace torchcoinfer {
namespace {

constexpr int LANES = 16;  // partial sums and maxima, so that loops vectorize without reassociation
constexpr float CODE_TOP = 127.f;
constexpr float ROUND = 12582912.f;  // 1.5 * 2^23: adding and subtracting it rounds to nearest even

template <typename T>
TORCHCOINFER_INLINE void convert_row(const T* x, int64_t K, int64_t padded, float* values) {
  for (int64_t k = 0; k < K; ++k) values[k] = to_float(x[k]);
  for (int64_t k = K; k < padded; ++k) values[k] = 0.f;
}

TORCHCOINFER_INLINE void convert(const SourceRows& x, int64_t row, int64_t padded, float* values) {
  const int64_t start = row * x.row_stride;
  if (x.dtype == Dtype::float32)
    convert_row(static_cast<const float*>(x.data) + start, x.K, padded, values);
  else if (x.dtype == Dtype::float16)
    convert_row(static_cast<const Float16*>(x.data) + start, x.K, padded, values);
  else
    convert_row(static_cast<const Bfloat16*>(x.data) + start, x.K, padded, values);
}

template <typename Sum, typename T>
TORCHCOINFER_INLINE void segment_sums(const T* values, const Segments& segments, Sum* sums) {
  for (int64_t s = 0; s < segments.count; ++s) {
    Sum lanes[LANES] = {};
    for (int64_t k = segments.begin(s) * TILE_K; k < segments.end(s) * TILE_K; k += LANES)
      for (int j = 0; j < LANES; ++j) lanes[j] += static_cast<Sum>(values[k + j]);
    Sum total = 0;
    for (int j = 0; j < LANES; ++j) total += lanes[j];
    sums[s] = total;
  }
}

TORCHCOINFER_INLINE void floats_body(const SourceRows& x, const Segments& segments, int64_t begin, int64_t end,
                                         float* values, float* sums) {
  const int64_t padded = segments.tiles * TILE_K;
  for (int64_t m = begin; m < end; ++m) {
    convert(x, m, padded, values + m * padded);
    if (sums) segment_sums(values + m * padded, segments, sums + m * segments.count);
  }
}

TORCHCOINFER_INLINE void codes_body(const SourceRows& x, const Segments& segments, int64_t begin, int64_t end,
                                        float* row, int8_t* values, float* scales, int32_t* sums) {
  const int64_t padded = segments.tiles * TILE_K;
  for (int64_t m = begin; m < end; ++m) {
    convert(x, m, padded, row);
    float lanes[LANES] = {}, poison[LANES] = {};
    for (int64_t k = 0; k < padded; k += LANES)
      for (int j = 0; j < LANES; ++j) {
        const float size = __builtin_fabsf(row[k + j]);
        lanes[j] = size > lanes[j] ? size : lanes[j];
        poison[j] += row[k + j] * 0.f;  // NaN where a value is NaN or infinite: so is then the whole row's result
      }
    const float largest = *std::max_element(lanes, lanes + LANES);
    const float inverse = x.in_codes ? 1.f : largest > 0 ? CODE_TOP / largest : 0.f;
    int8_t* codes = values + m * padded;
    // a loop of its own: fused into the rounding, a multiply-add would round ties otherwise than the other paths
    for (int64_t k = 0; k < padded; ++k) row[k] *= inverse;
    for (int64_t k = 0; k < padded; ++k) {
      const float rounded = row[k] + ROUND - ROUND;
      const float low = rounded > -CODE_TOP ? rounded : -CODE_TOP;
      codes[k] = static_cast<int8_t>(static_cast<int32_t>(low > CODE_TOP ? CODE_TOP : low));
    }
    scales[m] = x.in_codes ? 1.f : largest / CODE_TOP;
    for (int j = 0; j < LANES; ++j) scales[m] += poison[j];
    segment_sums(codes, segments, sums + m * segments.count);
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

TORCHCOINFER_VARIANTS(floats,
                      (const SourceRows& x, const Segments& segments, int64_t begin, int64_t end, float* values,
                       float* sums),
                      (x, segments, begin, end, values, sums))
TORCHCOINFER_VARIANTS(codes,
                      (const SourceRows& x, const Segments& segments, int64_t begin, int64_t end, float* row,
                       int8_t* values, float* scales, int32_t* sums),
                      (x, segments, begin, end, row, values, scales, sums))

template <typename Function>
Function* pick(Isa isa, Function* scalar, Function* avx2, Function* avx512) {
  return has_avx512(isa) ? avx512 : isa == Isa::avx2 ? avx2 : scalar;
}

}  // namespace

void float_rows(const SourceRows& x, const Segments& segments, Isa isa, int64_t begin, int64_t end, float* values,
                float* sums) {
  pick(isa, floats_scalar, floats_avx2, floats_avx512)(x, segments, begin, end, values, sums);
}

void scale_columns(const SourceRows& x, const float* scales, int64_t begin, int64_t end, float* out) {
  for (int64_t m = begin; m < end; ++m) {
    float* row = out + m * x.K;
    convert(x, m, x.K, row);
    for (int64_t k = 0; k < x.K; ++k) {
      const float code = row[k] / scales[k], low = code < -CODE_TOP ? -CODE_TOP : code;  // NaN stays
      row[k] = low > CODE_TOP ? CODE_TOP : low;
    }
  }
}

void code_rows(const SourceRows& x, const Segments& segments, Isa isa, int64_t begin, int64_t end, int8_t* values,
               float* scales, int32_t* sums) {
  const Buffer<float> row(segments.tiles * TILE_K);
  pick(isa, codes_scalar, codes_avx2, codes_avx512)(x, segments, begin, end, row.get(), values, scales, sums);
}

}  // namespace torchcoinfer
