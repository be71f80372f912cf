// A sparse block is spread into dense operands in the cache, then multiplied: quantized survivors become 8-bit dense
// tiles (layout.h) that the dense kernels take; float survivors become float32 places.

#include <algorithm>
#include <atomic>

#include "cpu/buffer.h"
#include "cpu/decoded.h"
#include "cpu/sparse_parts.h"
#include "cpu/sparse_stream.h"

namespace torchcoinfer {
namespace {

constexpr int64_t FEW_ROWS_BYTES = 1 << 18;   // of dense tiles that are spread at once
constexpr int64_t MANY_ROWS_BYTES = 1 << 22;
constexpr int64_t ENOUGH_PARTS = 8;
constexpr int BYTE_CENTER = 128;            // implicit zero point of 8-bit codes
constexpr int PLACES_BITS = 8;

// Zero points of one block, moved by `shift` so that codes lie around the center of a byte, where float sums lose least.
struct BlockZeros {
  int shift;
  uint8_t* zeros;  // [G, 16]; nullptr: symmetric
  const uint8_t* filler(int64_t group) const {
    return zeros ? zeros + group * BLOCK_N : CENTERS;
  }
  static constexpr uint8_t CENTERS[BLOCK_N] = {128, 128, 128, 128, 128, 128, 128, 128,
                                               128, 128, 128, 128, 128, 128, 128, 128};
};

BlockZeros block_zeros(const SparseMatrix& w, int64_t block, uint8_t* buffer) {
  BlockZeros result{BYTE_CENTER - implicit_zero(w.bits), nullptr};
  if (!w.zeros) return result;
  const int64_t count = group_count(w.K, w.group_size) * BLOCK_N;
  const uint8_t* source = w.zeros + block * count;
  const int largest = count ? *std::max_element(source, source + count) : 0;
  result.shift = std::min(result.shift, 255 - largest);
  for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<uint8_t>(source[i] + result.shift);
  result.zeros = buffer;
  return result;
}

// One n-block as 8-bit dense tiles [KT, 512].
bool spread_block(const SparseMatrix& w, const Spread& spread, int64_t block, const BlockZeros& zeros,
                  StreamScratch* scratch, uint8_t* tiles) {
  SurvivorStream stream(w, spread, block, scratch);
  const int64_t group_tiles = w.group_size ? w.group_size / TILE_K : w.tiles();
  for (int64_t t = 0; t < w.tiles(); t += WINDOW_TILES) {
    const int64_t count = std::min(WINDOW_TILES, w.tiles() - t);
    if (!stream.open(t, count)) return false;
    const uint8_t* survivors = stream.codes(zeros.shift);
    for (int64_t i = 0; i < count;) {
      const int64_t group = (t + i) / group_tiles;
      const int64_t part = std::min(count, (group + 1) * group_tiles - t) - i;
      survivors += spread.bytes(survivors, stream.masks() + i * TILE_GROUPS, part * TILE_GROUPS, zeros.filler(group),
                                tiles + (t + i) * tile_bytes(PLACES_BITS));
      i += part;
    }
  }
  return stream.complete();
}

Output blocks_of(const Output& out, int64_t block, int64_t last) {
  Output part = out;
  const int64_t n = block * BLOCK_N;
  part.y = static_cast<char*>(out.y) + n * out.column_stride * dtype_bytes(out.dtype);
  part.first = 0;
  part.last = std::min(out.last, last * BLOCK_N) - n;
  part.bias = out.bias ? out.bias + n : nullptr;
  return part;
}

// n-blocks spread at once: as many as stay in the cache (few rows) or as make the preparation of x cheap (many rows),
// fewer where there would not be enough parts for the threads; few rows, whose preparation is cheap, in more of them.
int64_t blocks_together(const SparseCall& call, int64_t blocks) {
  const int64_t block_bytes = std::max<int64_t>(call.weight.tiles() * tile_bytes(PLACES_BITS), 1);
  const bool few = call.rows <= GEMV_ROWS;
  const int64_t fitting = (few ? FEW_ROWS_BYTES : MANY_ROWS_BYTES) / block_bytes;
  const int64_t parts = few ? ENOUGH_PARTS : std::max<int64_t>(call.threads, 1);
  return std::max<int64_t>(2, std::min(fitting, ceil_div(blocks, parts)));
}

void run_here(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  if (count) body(0, count);
}

// Spreads blocks [first, last) and hands them to the dense linear.
bool multiply_codes_part(const SparseCall& call, int64_t first, int64_t last, StreamScratch* scratch, uint8_t* tiles,
                         uint8_t* zeros) {
  const SparseMatrix& w = call.weight;
  const Spread& spread = spread_of(call.isa);
  const int64_t block_zeros_bytes = group_count(w.K, w.group_size) * BLOCK_N;
  const int64_t block_bytes = w.tiles() * tile_bytes(PLACES_BITS);
  for (int64_t b = first; b < last; ++b) {
    const BlockZeros moved = block_zeros(w, b, zeros + (b - first) * block_zeros_bytes);
    if (!spread_block(w, spread, b, moved, scratch, tiles + (b - first) * block_bytes)) return false;
  }
  const char* scales = static_cast<const char*>(w.scales) + first * block_zeros_bytes * dtype_bytes(w.scale_dtype);
  const int64_t N = std::min(w.N, last * BLOCK_N) - first * BLOCK_N;
  const QuantMatrix dense{tiles,       scales,       w.zeros ? zeros : nullptr, w.scale_dtype,
                          PLACES_BITS, w.group_size, N,                         w.K};
  run_linear({dense, call.x, call.rows, call.activation_bits, blocks_of(call.out, first, last), call.isa}, run_here);
  return true;
}

bool multiply_codes(const SparseCall& call, const ParallelFor& parallel) {
  const SparseMatrix& w = call.weight;
  const int64_t blocks = ceil_div(w.N, BLOCK_N), together = blocks_together(call, blocks);
  const int64_t work = together * BLOCK_N * std::max<int64_t>(w.K, 1) * (call.rows + 1);
  std::atomic<bool> sound{true};
  parallel(ceil_div(blocks, together), ceil_div(SPARSE_WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    const Buffer<StreamScratch> scratch(1);
    const Buffer<uint8_t> tiles(together * w.tiles() * tile_bytes(PLACES_BITS));
    const Buffer<uint8_t> zeros(together * group_count(w.K, w.group_size) * BLOCK_N);
    for (int64_t first = begin * together; first < std::min(blocks, end * together); first += together)
      if (!multiply_codes_part(call, first, std::min(blocks, first + together), scratch.get(), tiles.get(),
                               zeros.get()))
        sound = false;
  });
  return sound;
}

}  // namespace

#if TORCHCOINFER_X86
bool decode_rows(const SparseMatrix& w, int64_t begin, int64_t end, uint16_t* out) {
  if (!w.bits) return avx512::decode_float_rows(w, begin, end, out);
  const Buffer<StreamScratch> scratch(1);
  const Buffer<uint8_t> tiles(w.tiles() * tile_bytes(PLACES_BITS));
  const int64_t zeros_bytes = group_count(w.K, w.group_size) * BLOCK_N;
  const Buffer<uint8_t> zeros(zeros_bytes);
  for (int64_t block = begin; block < end; ++block, out += BLOCK_N * w.K) {
    const BlockZeros moved = block_zeros(w, block, zeros.get());
    if (!spread_block(w, SPREAD_AVX512, block, moved, scratch.get(), tiles.get())) return false;
    const char* scales = static_cast<const char*>(w.scales) + block * zeros_bytes * dtype_bytes(w.scale_dtype);
    const QuantMatrix dense{tiles.get(), scales,       moved.zeros,          w.scale_dtype,
                            PLACES_BITS, w.group_size, w.N - block * BLOCK_N, w.K};
    decode_rows(dense, 0, 1, out);
  }
  return true;
}
#endif

bool run_sparse_linear(const SparseCall& call, const ParallelFor& parallel) {
  if (call.rows == 0 || call.weight.N == 0) return true;
  [[maybe_unused]] const bool wide = TORCHCOINFER_X86 && has_avx512(call.isa);
#if TORCHCOINFER_X86
  if (wide && avx512::are_few_codes(call)) return avx512::multiply_few_codes(call, parallel);
  if (wide && !call.weight.bits && call.x.dtype == Dtype::bfloat16) return avx512::multiply_pairs(call, parallel);
#endif
  return call.weight.bits ? multiply_codes(call, parallel) : multiply_floats(call, parallel);
}

}  // namespace torchcoinfer
