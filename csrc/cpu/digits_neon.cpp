#include "cpu/digits_neon.h"

#if TORCHCOINFER_ARM

#include "cpu/buffer.h"
#include "cpu/decode_neon.h"

namespace torchcoinfer::neon {
namespace {

constexpr int64_t BLOCKS_TOGETHER = 2;      // n-blocks of a task at least
constexpr int64_t PART_BYTES_MOST = 256 << 10;  // digits of a part of rows, which stay in L2
constexpr int64_t WORK_GRAIN = 1 << 17;     // multiply-adds that are worth a thread
constexpr int64_t ELEMENT_GRAIN = 1 << 14;  // elements of x that are worth a thread

using Kernel = decltype(&gemv_digits);

}  // namespace

void run_linear(const LinearCall& call, const ParallelFor& parallel) {
  const Segments segments(call.weight.K, call.weight.group_size);
  const int digits = call.activation_bits == 8 ? 1 : call.x.dtype == Dtype::float32 ? 3 : 2;
  const DigitTiles tiles(call.rows, digits);
  const bool pairs = tiles.count > 1 && arm_level() == ArmLevel::i8mm;
  const int64_t padded = segments.tiles * TILE_K, row_bytes = padded * (digits + (pairs ? 1 : 0));
  const Buffer<int8_t> lanes(call.rows * row_bytes);
  const Buffer<int32_t> starts(call.rows * segments.count * digits);
  const Buffer<float> scales(call.rows * segments.count);
  const int64_t tile_elements = std::max<int64_t>(padded * MOST_DIGITS_TOGETHER, 1);
  parallel(tiles.count, ceil_div(ELEMENT_GRAIN, tile_elements), [&](int64_t begin, int64_t end) {
    digit_rows(call.x, tiles, segments, digits, pairs, row_bytes, {lanes.get(), starts.get(), scales.get()}, begin, end);
  });
  const DigitRows x{lanes.get(), starts.get(), scales.get(), tiles, row_bytes, segments.count, digits};
  const Kernel kernel = tiles.count == 1 ? gemv_digits : pairs ? gemm_pairs : gemm_dots;
  const int64_t first = call.out.first / BLOCK_N, last = ceil_div(call.out.last, BLOCK_N);
  const int64_t block_parts = ceil_div(last - first, BLOCKS_TOGETHER);
  const int64_t fitting = std::max<int64_t>(1, PART_BYTES_MOST / (tile_elements * (pairs ? 2 : 1)));  // tiles
  const int64_t row_parts = ceil_div(tiles.count, fitting);
  const int64_t work = BLOCKS_TOGETHER * BLOCK_N * std::max<int64_t>(call.weight.K, 1) * ceil_div(call.rows, row_parts);
  parallel(row_parts * block_parts, ceil_div(WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end;) {
      const int64_t part = task / block_parts, block_part = task % block_parts;
      const int64_t together = std::min(end - task, block_parts - block_part);  // neighbors go in one call
      const int64_t block = first + block_part * BLOCKS_TOGETHER;
      kernel(call.weight, x, part * tiles.count / row_parts, (part + 1) * tiles.count / row_parts, call.out, block,
             std::min(last, block + together * BLOCKS_TOGETHER));
      task += together;
    }
  });
}

}  // namespace torchcoinfer::neon

#endif
