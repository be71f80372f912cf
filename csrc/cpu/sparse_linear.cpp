// A sparse block is spread into dense operands in the cache, then multiplied: quantized survivors become 8-bit dense
// tiles (layout.h) that the dense kernels take; float survivors become float32 places.

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/sparse.h"
#include "cpu/sparse_spread.h"

namespace torchcoinfer {
namespace {

constexpr int64_t WINDOW_TILES = 8;  // spread at once: 4 KiB of bytes, 16 KiB of floats
constexpr int64_t WINDOW_WORDS = WINDOW_TILES * TILE_GROUPS;
constexpr int64_t WINDOW_SURVIVORS = WINDOW_WORDS * GROUP_PLACES;
constexpr int64_t FEW_ROWS_BYTES = 1 << 18;   // of dense tiles that are spread at once
constexpr int64_t MANY_ROWS_BYTES = 1 << 21;
constexpr int64_t ENOUGH_PARTS = 8;
constexpr int64_t WORK_GRAIN = 1 << 18;     // multiply-adds that are worth a thread
constexpr int64_t ELEMENT_GRAIN = 1 << 15;  // elements of x that are worth a thread
constexpr int BYTE_CENTER = 128;            // implicit zero point of 8-bit codes
constexpr int PLACES_BITS = 8;

// Walks one n-block window by window and hands out masks and readable survivors.
class BlockReader {
 public:
  BlockReader(const SparseMatrix& w, const Spread& spread, int64_t block)
      : w_(w), spread_(spread), block_(block), first_(w.first_chunk(block)) {
    chunks_ = w.first_chunk(block + 1) - first_;
  }

  // Masks of tiles [tile, tile + count); false if the stream is too short for them.
  bool open(int64_t tile, int64_t count) {
    const int64_t words = count * TILE_GROUPS, start = (block_ * w_.tiles() + tile) * TILE_GROUPS;
    if (w_.paired) {
      spread_.masks(w_.index + start * 8, words, built_);
      masks_ = built_;
    } else {
      masks_ = w_.masks + start;
    }
    taken_ = next_;
    next_ += spread_.count(masks_, words);
    return next_ <= chunks_ * CHUNK;
  }
  const uint64_t* masks() const {
    return masks_;
  }
  // The window's survivors as codes + shift.
  const uint8_t* codes(int shift) {
    const int64_t begin = taken_ / CHUNK, end = ceil_div(next_, CHUNK), bytes = chunk_bytes(w_.bits);
    const uint8_t* source = static_cast<const uint8_t*>(w_.values) + (first_ + begin) * bytes;
    if (end > begin) spread_.unpack(source, end - begin, w_.bits, shift, codes_);
    return codes_ + taken_ % CHUNK;
  }
  // The window's survivors as stored floats; the last of the tensor are copied, since kernels read beyond them.
  const void* floats() {
    const int64_t size = dtype_bytes(w_.value_dtype), begin = first_ * CHUNK + taken_;
    const uint8_t* source = static_cast<const uint8_t*>(w_.values) + begin * size;
    if (first_ * CHUNK + next_ + SURVIVOR_SLACK <= w_.chunks * CHUNK) return source;
    std::memcpy(floats_, source, (next_ - taken_) * size);
    return floats_;
  }
  bool complete() const {
    return ceil_div(next_, CHUNK) == chunks_;
  }

 private:
  const SparseMatrix& w_;
  const Spread& spread_;
  int64_t block_, first_, chunks_ = 0;
  int64_t taken_ = 0, next_ = 0;  // survivors of the block before and after the open window
  const uint64_t* masks_ = nullptr;
  uint64_t built_[WINDOW_WORDS];
  alignas(64) uint8_t codes_[WINDOW_SURVIVORS + CHUNK + SURVIVOR_SLACK];
  alignas(64) float floats_[WINDOW_SURVIVORS + SURVIVOR_SLACK];
};

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
bool spread_block(const SparseMatrix& w, const Spread& spread, int64_t block, const BlockZeros& zeros, uint8_t* tiles) {
  BlockReader reader(w, spread, block);
  const int64_t group_tiles = w.group_size ? w.group_size / TILE_K : w.tiles();
  for (int64_t t = 0; t < w.tiles(); t += WINDOW_TILES) {
    const int64_t count = std::min(WINDOW_TILES, w.tiles() - t);
    if (!reader.open(t, count)) return false;
    const uint8_t* survivors = reader.codes(zeros.shift);
    for (int64_t i = 0; i < count;) {
      const int64_t group = (t + i) / group_tiles;
      const int64_t part = std::min(count, (group + 1) * group_tiles - t) - i;
      survivors += spread.bytes(survivors, reader.masks() + i * TILE_GROUPS, part * TILE_GROUPS, zeros.filler(group),
                                tiles + (t + i) * tile_bytes(PLACES_BITS));
      i += part;
    }
  }
  return reader.complete();
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
// fewer where there would not be enough parts for the threads.
int64_t blocks_together(const SparseCall& call, int64_t blocks) {
  const int64_t block_bytes = std::max<int64_t>(call.weight.tiles() * tile_bytes(PLACES_BITS), 1);
  const int64_t fitting = (call.rows <= GEMV_ROWS ? FEW_ROWS_BYTES : MANY_ROWS_BYTES) / block_bytes;
  return std::max<int64_t>(2, std::min(fitting, ceil_div(blocks, ENOUGH_PARTS)));
}

void run_here(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  if (count) body(0, count);
}

// Spreads blocks [first, last) and hands them to the dense linear.
bool multiply_codes_part(const SparseCall& call, int64_t first, int64_t last, uint8_t* tiles, uint8_t* zeros) {
  const SparseMatrix& w = call.weight;
  const Spread& spread = spread_of(call.isa);
  const int64_t block_zeros_bytes = group_count(w.K, w.group_size) * BLOCK_N;
  const int64_t block_bytes = w.tiles() * tile_bytes(PLACES_BITS);
  for (int64_t b = first; b < last; ++b) {
    const BlockZeros moved = block_zeros(w, b, zeros + (b - first) * block_zeros_bytes);
    if (!spread_block(w, spread, b, moved, tiles + (b - first) * block_bytes)) return false;
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
  parallel(ceil_div(blocks, together), ceil_div(WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    const Buffer<uint8_t> tiles(together * w.tiles() * tile_bytes(PLACES_BITS));
    const Buffer<uint8_t> zeros(together * group_count(w.K, w.group_size) * BLOCK_N);
    for (int64_t first = begin * together; first < std::min(blocks, end * together); first += together)
      if (!multiply_codes_part(call, first, std::min(blocks, first + together), tiles.get(), zeros.get())) sound = false;
  });
  return sound;
}

bool multiply_floats(const SparseCall& call, const FloatRows& x, const ParallelFor& parallel) {
  const SparseMatrix& w = call.weight;
  const Spread& spread = spread_of(call.isa);
  const int64_t blocks = ceil_div(w.N, BLOCK_N), work = BLOCK_N * std::max<int64_t>(w.K, 1) * (x.rows + 1);
  std::atomic<bool> sound{true};
  parallel(blocks, ceil_div(WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    const Buffer<float> places(WINDOW_SURVIVORS), sums(x.rows * GROUP_PLACES);
    for (int64_t block = begin; block < end; ++block) {
      BlockReader reader(w, spread, block);
      std::memset(sums.get(), 0, x.rows * GROUP_PLACES * sizeof(float));
      for (int64_t t = 0; t < w.tiles(); t += WINDOW_TILES) {
        const int64_t words = std::min(WINDOW_TILES, w.tiles() - t) * TILE_GROUPS;
        if (!reader.open(t, words / TILE_GROUPS)) {
          sound = false;
          return;
        }
        const float* columns = x.values + t * TILE_K;
        if (spread.few && x.rows <= FEW_ROWS) {
          spread.few(reader.floats(), w.value_dtype, reader.masks(), words, columns, x.stride, x.rows, sums.get());
          continue;
        }
        spread.floats(reader.floats(), w.value_dtype, reader.masks(), words, places.get());
        spread.multiply(places.get(), words, columns, x.stride, x.rows, sums.get());
      }
      if (!reader.complete()) sound = false;
      for (int64_t m = 0; m < x.rows; ++m) {
        float of_rows[BLOCK_N];
        for (int n = 0; n < BLOCK_N; ++n) {
          const float* four = sums.get() + m * GROUP_PLACES + GROUP_K * n;
          of_rows[n] = (four[0] + four[1]) + (four[2] + four[3]);
        }
        store_row(of_rows, call.out, m, block);
      }
    }
  });
  return sound;
}

}  // namespace

bool run_sparse_linear(const SparseCall& call, const ParallelFor& parallel) {
  if (call.rows == 0 || call.weight.N == 0) return true;
  if (call.weight.bits) return multiply_codes(call, parallel);
  const Segments segments(call.weight.K, call.weight.group_size);
  const int64_t rows = call.rows, stride = segments.tiles * TILE_K;
  const Buffer<float> values(rows * stride);
  parallel(rows, ceil_div(ELEMENT_GRAIN, std::max<int64_t>(stride, 1)), [&](int64_t begin, int64_t end) {
    float_rows(call.x, segments, call.isa, begin, end, values.get(), nullptr);
  });
  return multiply_floats(call, {values.get(), nullptr, rows, stride}, parallel);
}

}  // namespace torchcoinfer
