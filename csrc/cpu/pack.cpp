#include "cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "layout.h"

namespace torchcoinfer {

void pack_codes(const uint8_t* codes, int bits, int64_t N, int64_t K, uint8_t* packed, int64_t begin, int64_t end) {
  const int64_t tiles = ceil_div(K, TILE_K), bytes = tile_bytes(bits);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t rows = std::min<int64_t>(BLOCK_N, N - block * BLOCK_N);
    for (int64_t t = 0; t < tiles; ++t) {
      uint8_t* tile = packed + (block * tiles + t) * bytes;
      const int64_t columns = std::min<int64_t>(TILE_K, K - t * TILE_K);
      std::memset(tile, 0, bytes);
      for (int n = 0; n < rows; ++n) {
        const uint8_t* row = codes + (block * BLOCK_N + n) * K + t * TILE_K;
        for (int k = 0; k < columns; ++k) put_tile_code(tile, bits, n, k, row[k]);
      }
    }
  }
}

void unpack_codes(const uint8_t* packed, int bits, int64_t N, int64_t K, uint8_t* codes, int64_t begin, int64_t end) {
  const int64_t tiles = ceil_div(K, TILE_K), bytes = tile_bytes(bits);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t rows = std::min<int64_t>(BLOCK_N, N - block * BLOCK_N);
    for (int64_t t = 0; t < tiles; ++t) {
      const uint8_t* tile = packed + (block * tiles + t) * bytes;
      const int64_t columns = std::min<int64_t>(TILE_K, K - t * TILE_K);
      for (int n = 0; n < rows; ++n) {
        uint8_t* row = codes + (block * BLOCK_N + n) * K + t * TILE_K;
        for (int k = 0; k < columns; ++k) row[k] = static_cast<uint8_t>(tile_code(tile, bits, n, k));
      }
    }
  }
}

namespace {

struct Group {
  float scale;
  int zero;
};

// Scale (already rounded to the stored dtype) and zero point of one (row, group) with the given extremes.
Group choose_group(float low, float high, int bits, bool symmetric, Dtype scale_dtype) {
  const int top = (1 << bits) - 1;
  low = std::min(low, 0.f);
  high = std::max(high, 0.f);
  float scale = symmetric ? std::max(-low, high) / static_cast<float>(implicit_zero(bits) - 1) : (high - low) / top;
  uint32_t stored = 0;
  store_float(scale, &stored, scale_dtype, 0);
  scale = load_float(&stored, scale_dtype, 0);
  if (symmetric) return {scale, implicit_zero(bits)};
  const float zero = scale > 0 ? std::nearbyint(-low / scale) : 0.f;
  return {scale, static_cast<int>(std::clamp(zero, 0.f, static_cast<float>(top)))};
}

}  // namespace

bool quantize_blocks(const void* weight, Dtype dtype, int bits, int64_t group_size, int64_t N, int64_t K,
                     const QuantOutput& out, int64_t begin, int64_t end) {
  bool finite = true;
  const int64_t tiles = ceil_div(K, TILE_K), groups = group_count(K, group_size);
  const int64_t length = group_size == 0 ? K : group_size;
  const float top = static_cast<float>((1 << bits) - 1);
  for (int64_t row = begin * BLOCK_N; row < std::min(N, end * BLOCK_N); ++row) {
    const int64_t block = row / BLOCK_N;
    const int n = static_cast<int>(row % BLOCK_N);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t k_begin = g * length, k_end = std::min(K, k_begin + length);
      float low = 0, high = 0;
      for (int64_t k = k_begin; k < k_end; ++k) {
        const float value = load_float(weight, dtype, row * K + k);
        finite = finite && std::isfinite(value);
        low = std::min(low, value);
        high = std::max(high, value);
      }
      const Group group = choose_group(low, high, bits, out.zeros == nullptr, out.scale_dtype);
      finite = finite && std::isfinite(group.scale);
      const int64_t place = (block * groups + g) * BLOCK_N + n;
      store_float(group.scale, out.scales, out.scale_dtype, place);
      if (out.zeros) out.zeros[place] = static_cast<uint8_t>(group.zero);
      for (int64_t k = k_begin; k < k_end; ++k) {
        const float value = load_float(weight, dtype, row * K + k);
        const float steps = group.scale > 0 ? std::nearbyint(value / group.scale) : 0.f;
        const float code = std::clamp(steps + static_cast<float>(group.zero), 0.f, top);
        uint8_t* tile = out.packed + (block * tiles + k / TILE_K) * tile_bytes(bits);
        put_tile_code(tile, bits, n, static_cast<int>(k % TILE_K), static_cast<int>(code));
      }
    }
  }
  return finite;
}

void dequantize_blocks(const QuantMatrix& matrix, void* out, Dtype dtype, int64_t begin, int64_t end) {
  const int bits = matrix.bits;
  const int64_t N = matrix.N, K = matrix.K, tiles = ceil_div(K, TILE_K), groups = group_count(K, matrix.group_size);
  for (int64_t row = begin * BLOCK_N; row < std::min(N, end * BLOCK_N); ++row) {
    const int64_t block = row / BLOCK_N;
    const int n = static_cast<int>(row % BLOCK_N);
    for (int64_t k = 0; k < K; ++k) {
      const int64_t g = matrix.group_size == 0 ? 0 : k / matrix.group_size;
      const int64_t place = (block * groups + g) * BLOCK_N + n;
      const float scale = load_float(matrix.scales, matrix.scale_dtype, place);
      const int zero = matrix.zeros ? matrix.zeros[place] : implicit_zero(bits);
      const uint8_t* tile = matrix.packed + (block * tiles + k / TILE_K) * tile_bytes(bits);
      const int code = tile_code(tile, bits, n, static_cast<int>(k % TILE_K));
      store_float(scale * static_cast<float>(code - zero), out, dtype, row * K + k);
    }
  }
}

}  // namespace torchcoinfer
