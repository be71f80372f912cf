// The truth for every format and shape, plain enough for the compiler to vectorize (it does on NEON and SSE).

#include <algorithm>
#include <vector>

#include "cpu/linear.h"

namespace torchcoinfer {
namespace {

constexpr int64_t CHUNK_TILES = 4;  // tiles decoded at once
constexpr int64_t TILE_CODES = BLOCK_N * TILE_K;

// Decoded tiles, k-major: values[k][n] = code - center.
template <typename T>
void decode_tiles(const uint8_t* tiles, int64_t count, int bits, int center, T* values) {
  uint8_t codes[TILE_CODES];
  for (int64_t t = 0; t < count; ++t) {
    decode_tile(tiles + t * tile_bytes(bits), bits, codes);
    for (int64_t i = 0; i < TILE_CODES; ++i) values[t * TILE_CODES + i] = static_cast<T>(codes[i] - center);
  }
}

struct GroupValues {
  float scale[BLOCK_N];
  int zero[BLOCK_N];

  GroupValues(const QuantMatrix& w, int64_t place) {
    for (int n = 0; n < BLOCK_N; ++n) {
      scale[n] = load_float(w.scales, w.scale_dtype, place * BLOCK_N + n);
      zero[n] = w.zeros ? w.zeros[place * BLOCK_N + n] : implicit_zero(w.bits);
    }
  }
};

// sums[n] = sum over k of values[k][n] * x[k]
template <typename T, typename X, typename Sum>
void accumulate(const T* values, const X* x, int64_t columns, Sum* sums) {
  for (int64_t k = 0; k < columns; ++k)
    for (int n = 0; n < BLOCK_N; ++n) sums[n] += static_cast<Sum>(values[k * BLOCK_N + n]) * static_cast<Sum>(x[k]);
}

}  // namespace

TORCHCOINFER_LINEAR_KERNEL(linear_float_scalar, FloatRows) {
  (void)few;
  const Segments segments(w.K, w.group_size);
  const int center = implicit_zero(w.bits);
  std::vector<float> values(CHUNK_TILES * TILE_CODES), sums(x.rows * BLOCK_N), part(x.rows * BLOCK_N);
  for (int64_t block = begin; block < end; ++block) {
    std::fill(sums.begin(), sums.end(), 0.f);
    for (int64_t s = 0; s < segments.count; ++s) {
      const GroupValues group(w, block * segments.groups() + segments.group(s));
      std::fill(part.begin(), part.end(), 0.f);
      for (int64_t t = segments.begin(s); t < segments.end(s); t += CHUNK_TILES) {
        const int64_t count = std::min(CHUNK_TILES, segments.end(s) - t);
        decode_tiles(w.packed + (block * segments.tiles + t) * tile_bytes(w.bits), count, w.bits, center, values.data());
        for (int64_t m = 0; m < x.rows; ++m)
          accumulate(values.data(), x.values + m * x.stride + t * TILE_K, count * TILE_K, &part[m * BLOCK_N]);
      }
      for (int64_t m = 0; m < x.rows; ++m)
        for (int n = 0; n < BLOCK_N; ++n) {
          const float offset = static_cast<float>(group.zero[n] - center);
          const float shift = w.zeros ? offset * x.sums[m * segments.count + s] : 0.f;
          sums[m * BLOCK_N + n] += group.scale[n] * (part[m * BLOCK_N + n] - shift);
        }
    }
    for (int64_t m = 0; m < x.rows; ++m) store_row(&sums[m * BLOCK_N], out, m, block);
  }
}

TORCHCOINFER_LINEAR_KERNEL(linear_codes_scalar, CodeRows) {
  (void)few;
  const Segments segments(w.K, w.group_size);
  std::vector<int16_t> values(CHUNK_TILES * TILE_CODES);
  std::vector<float> sums(x.rows * BLOCK_N);
  std::vector<int32_t> part(x.rows * BLOCK_N);
  for (int64_t block = begin; block < end; ++block) {
    std::fill(sums.begin(), sums.end(), 0.f);
    for (int64_t s = 0; s < segments.count; ++s) {
      const GroupValues group(w, block * segments.groups() + segments.group(s));
      std::fill(part.begin(), part.end(), 0);
      for (int64_t t = segments.begin(s); t < segments.end(s); t += CHUNK_TILES) {
        const int64_t count = std::min(CHUNK_TILES, segments.end(s) - t);
        decode_tiles(w.packed + (block * segments.tiles + t) * tile_bytes(w.bits), count, w.bits, 0, values.data());
        for (int64_t m = 0; m < x.rows; ++m)
          accumulate(values.data(), x.values + m * x.stride + t * TILE_K, count * TILE_K, &part[m * BLOCK_N]);
      }
      for (int64_t m = 0; m < x.rows; ++m)
        for (int n = 0; n < BLOCK_N; ++n) {
          const int32_t sum = part[m * BLOCK_N + n] - group.zero[n] * x.sums[m * segments.count + s];
          sums[m * BLOCK_N + n] += group.scale[n] * static_cast<float>(sum);
        }
    }
    for (int64_t m = 0; m < x.rows; ++m) {
      for (int n = 0; n < BLOCK_N; ++n) sums[m * BLOCK_N + n] *= x.scales[m];
      store_row(&sums[m * BLOCK_N], out, m, block);
    }
  }
}

}  // namespace torchcoinfer
