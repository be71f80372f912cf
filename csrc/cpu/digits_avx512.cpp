#include "cpu/digits_avx512.h"

#if TORCHCOINFER_X86

#include <algorithm>

#include "cpu/buffer.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int64_t RESIDENT_BYTES = 512 << 10;  // digits of a part of rows, which stay in L2
constexpr int64_t LEAST_PART_ROWS = 24;
constexpr int64_t MOST_PART_ROWS = 480;
constexpr int64_t BLOCKS_TOGETHER = 2;         // n-blocks that gemm_digits takes at once
constexpr int64_t WORK_GRAIN = 1 << 18;        // multiply-adds that are worth a thread
constexpr int64_t ELEMENT_GRAIN = 1 << 15;     // elements of x that are worth a thread

using Kernel = void (*)(const QuantMatrix&, const DigitRows&, const Output&, int64_t, int64_t);

// The digits of all rows of a call, in parts whose digits stay in L2.
class Digits {
 public:
  Digits(const LinearCall& call, const ParallelFor& parallel)
      : segments_(call.weight.K, call.weight.group_size),
        digits_(digit_count(call)),
        row_lanes_(segments_.tiles * (TILE_K / 4) * digits_),
        each_(part_rows(call.rows)),
        lanes_(call.rows * row_lanes_),
        starts_(call.rows * segments_.count * digits_),
        scales_(call.rows * segments_.count),
        all_{lanes_.get(), starts_.get(), scales_.get(), call.rows, row_lanes_, segments_.count, digits_} {
    const int factor = call.weight.zeros ? 1 : implicit_zero(call.weight.bits);
    const int64_t grain = ceil_div(ELEMENT_GRAIN, std::max<int64_t>(row_lanes_ * (RowTiles::MOST / digits_), 1));
    for (int64_t row = 0; row < call.rows; row += each_) {
      const DigitTiles tiles(std::min(each_, call.rows - row), digits_);
      const DigitTarget target{lanes_.get() + row * row_lanes_, starts_.get() + row * segments_.count * digits_,
                               scales_.get() + row * all_.scales_each()};
      parallel(tiles.count, grain, [&](int64_t begin, int64_t end) {
        digit_rows(call.x, row, tiles, segments_, digits_, factor, target, begin, end);
      });
    }
  }
  int64_t parts() const {
    return ceil_div(all_.rows, each_);
  }
  int64_t rows_each() const {
    return each_;
  }
  DigitRows part(int64_t index) const {
    const int64_t row = index * each_;
    return all_.from(row, std::min(each_, all_.rows - row));
  }

 private:
  // Nearly equal parts.
  int64_t part_rows(int64_t rows) const {
    const int64_t fitting = RESIDENT_BYTES / std::max<int64_t>(row_lanes_ * 4, 1);
    return ceil_div(rows, ceil_div(rows, std::clamp(fitting, LEAST_PART_ROWS, MOST_PART_ROWS)));
  }

  Segments segments_;
  int digits_;
  int64_t row_lanes_;
  int64_t each_;
  Buffer<int32_t> lanes_, starts_;
  Buffer<float> scales_;
  DigitRows all_;
};

}  // namespace

void run_linear(const LinearCall& call, const ParallelFor& parallel) {
  const Digits x(call, parallel);
  const int64_t first = call.out.first / BLOCK_N, last = ceil_div(call.out.last, BLOCK_N);
  const int64_t block_parts = ceil_div(last - first, BLOCKS_TOGETHER);
  const int64_t work = BLOCKS_TOGETHER * BLOCK_N * std::max<int64_t>(call.weight.K, 1) * x.rows_each();
  parallel(x.parts() * block_parts, ceil_div(WORK_GRAIN, work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end;) {
      const int64_t part = task / block_parts, block_part = task % block_parts;
      const int64_t together = std::min(end - task, block_parts - block_part);  // neighbors go in one call
      const int64_t block = first + block_part * BLOCKS_TOGETHER;
      Output out = call.out;
      out.y = static_cast<char*>(out.y) + part * x.rows_each() * out.row_stride * dtype_bytes(out.dtype);
      const DigitRows rows = x.part(part);
      const Kernel kernel = DigitTiles(rows.rows, rows.digits).count == 1 ? gemv_digits : gemm_digits;
      kernel(call.weight, rows, out, block, std::min(last, block + together * BLOCKS_TOGETHER));
      task += together;
    }
  });
}

}  // namespace torchcoinfer::avx512

#endif
