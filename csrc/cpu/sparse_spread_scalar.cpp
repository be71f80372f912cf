// The truth for spreading survivors; `multiply` is plain enough for the compiler to vectorize.

#include <cstring>

#include "cpu/sparse_spread.h"

namespace torchcoinfer {
namespace {

int64_t count(const uint64_t* masks, int64_t words) {
  int64_t total = 0;
  for (int64_t w = 0; w < words; ++w) total += __builtin_popcountll(masks[w]);
  return total;
}

void masks(const uint8_t* index, int64_t words, uint64_t* masks) {
  for (int64_t w = 0; w < words; ++w) masks[w] = index_mask(index + 8 * w, 0);
}

void unpack(const uint8_t* chunks, int64_t count, int bits, int shift, uint8_t* codes) {
  for (int64_t c = 0; c < count; ++c, chunks += chunk_bytes(bits), codes += CHUNK) {
    std::memset(codes, shift, CHUNK);
    for (int index = 0; index < plane_count(bits); ++index) {
      const Plane p = plane(bits, index);
      const int bytes = 8 * p.bits, field_mask = (1 << p.bits) - 1;
      for (int field = 0; field < 8 / p.bits; ++field)
        for (int i = 0; i < bytes; ++i) {
          const int part = chunks[8 * p.shift + i] >> p.bits * field & field_mask;
          codes[field * bytes + i] = static_cast<uint8_t>(codes[field * bytes + i] + (part << p.shift));
        }
    }
  }
}

int64_t bytes(const uint8_t* survivors, const uint64_t* masks, int64_t words, const uint8_t* filler,
              uint8_t* places) {
  int64_t taken = 0;
  for (int64_t w = 0; w < words; ++w, places += GROUP_PLACES)
    for (int at = 0; at < GROUP_PLACES; ++at)
      places[at] = masks[w] >> at & 1 ? survivors[taken++] : filler[at / GROUP_K];
  return taken;
}

int64_t floats(const void* survivors, Dtype dtype, const uint64_t* masks, int64_t words, float* places) {
  int64_t taken = 0;
  for (int64_t w = 0; w < words; ++w, places += GROUP_PLACES)
    for (int at = 0; at < GROUP_PLACES; ++at)
      places[at] = masks[w] >> at & 1 ? load_float(survivors, dtype, taken++) : 0.f;
  return taken;
}

void multiply(const float* places, int64_t words, const float* x, int64_t stride, int64_t rows, float* sums) {
  for (int64_t m = 0; m < rows; ++m) {
    float part[GROUP_PLACES] = {};
    for (int64_t w = 0; w < words; ++w)
      for (int at = 0; at < GROUP_PLACES; ++at)
        part[at] += places[w * GROUP_PLACES + at] * x[m * stride + GROUP_K * w + at % GROUP_K];
    for (int at = 0; at < GROUP_PLACES; ++at) sums[m * GROUP_PLACES + at] += part[at];
  }
}

}  // namespace

void store_scalar(const float* sums, int64_t rows, const Output& out, int64_t block) {
  for (int64_t m = 0; m < rows; ++m, sums += GROUP_PLACES) {
    float of_rows[BLOCK_N];
    for (int n = 0; n < BLOCK_N; ++n) {
      const float* four = sums + GROUP_K * n;
      of_rows[n] = (four[0] + four[1]) + (four[2] + four[3]);
    }
    store_row(of_rows, out, m, block);
  }
}

const Spread SPREAD_SCALAR = {count, masks, unpack, bytes, floats, nullptr, multiply, store_scalar};

}  // namespace torchcoinfer
