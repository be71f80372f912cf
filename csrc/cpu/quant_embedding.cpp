#include "cpu/quant_embedding.h"

#include <algorithm>

namespace torchcoinfer {
namespace {

// The 32 codes of row n of a tile.
void decode_tile_row(const uint8_t* tile, int bits, int n, int* codes) {
  for (int index = 0; index < plane_count(bits); ++index) {
    const Plane p = plane(bits, index);
    const int mask = (1 << p.bits) - 1, per_vector = TILE_K / p.bits;
    for (int k = 0; k < TILE_K; ++k) {
      const uint8_t byte = tile[p.offset + VECTOR_BYTES * (k / per_vector) + 4 * n + k % 4];
      const int part = (byte >> (p.bits * (k % per_vector / 4)) & mask) << p.shift;
      codes[k] = index ? codes[k] | part : part;
    }
  }
}

}  // namespace

template <typename Index>
void embed_rows(const QuantMatrix& table, const Index* indices, void* out, Dtype dtype, int64_t begin, int64_t end) {
  const int64_t tiles = ceil_div(table.K, TILE_K), groups = group_count(table.K, table.group_size);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t block = indices[i] / BLOCK_N;
    const int n = static_cast<int>(indices[i] % BLOCK_N);
    for (int64_t t = 0; t < tiles; ++t) {
      int codes[TILE_K];
      decode_tile_row(table.packed + (block * tiles + t) * tile_bytes(table.bits), table.bits, n, codes);
      const int64_t group = table.group_size ? t * TILE_K / table.group_size : 0;
      const int64_t place = (block * groups + group) * BLOCK_N + n;
      const float scale = load_float(table.scales, table.scale_dtype, place);
      const int zero = table.zeros ? table.zeros[place] : implicit_zero(table.bits);
      const int64_t columns = std::min<int64_t>(TILE_K, table.K - t * TILE_K);
      for (int64_t k = 0; k < columns; ++k)
        store_float(scale * static_cast<float>(codes[k] - zero), out, dtype, i * table.K + t * TILE_K + k);
    }
  }
}

template void embed_rows(const QuantMatrix&, const int64_t*, void*, Dtype, int64_t, int64_t);
template void embed_rows(const QuantMatrix&, const int32_t*, void*, Dtype, int64_t, int64_t);

}  // namespace torchcoinfer
