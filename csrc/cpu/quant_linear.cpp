#include "cpu/quant_linear.h"

#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/digits_avx512.h"
#include "cpu/digits_neon.h"
#include "cpu/gemv_avx2.h"
#include "cpu/linear_amx.h"

namespace torchcoinfer {
namespace {

constexpr int64_t BLOCKS_TOGETHER = 2;       // n-blocks a GEMM kernel takes at once
constexpr int64_t ROWS_TOGETHER = 480;       // rows of one task where there are blocks enough to share out
constexpr int64_t ROWS_FEW_BLOCKS = 48;      // and where there are not
constexpr int64_t ENOUGH_BLOCKS = 32;
constexpr int64_t WORK_GRAIN = 1 << 18;      // multiply-adds that are worth a thread
constexpr int64_t ELEMENT_GRAIN = 1 << 15;   // elements of x that are worth a thread

template <typename Rows>
using Kernel = void (*)(const QuantMatrix&, const Rows&, const Output&, bool, int64_t, int64_t);

Kernel<FloatRows> float_kernel(Isa isa) {
#if TORCHCOINFER_X86
  if (isa == Isa::avx2) return linear_float_avx2;
#endif
#if TORCHCOINFER_ARM
  if (isa == Isa::neon) return linear_float_neon;
#endif
  (void)isa;
  return linear_float_scalar;
}

Kernel<CodeRows> code_kernel(Isa isa) {
#if TORCHCOINFER_X86
  if (isa == Isa::avx2) return linear_codes_avx2;
#endif
#if TORCHCOINFER_ARM
  if (isa == Isa::neon) return linear_codes_neon;
#endif
  (void)isa;
  return linear_codes_scalar;
}

template <typename T>
T* advance(T* pointer, int64_t count) {
  return pointer ? pointer + count : nullptr;
}

// Rows [row, row + rows) of prepared activations.
FloatRows part(const FloatRows& x, int64_t row, int64_t rows, int64_t segments) {
  return {x.values + row * x.stride, advance(x.sums, row * segments), rows, x.stride};
}
CodeRows part(const CodeRows& x, int64_t row, int64_t rows, int64_t segments) {
  return {x.values + row * x.stride, x.scales + row, x.sums + row * segments, rows, x.stride};
}

// How a call is cut into tasks: parts of rows times pairs of n-blocks.
struct Tasks {
  int64_t first_block, last_block;
  int64_t rows_each, row_parts, block_parts;

  explicit Tasks(const LinearCall& call)
      : first_block(call.out.first / BLOCK_N),
        last_block(ceil_div(call.out.last, BLOCK_N)),
        rows_each(last_block - first_block >= ENOUGH_BLOCKS ? ROWS_TOGETHER : ROWS_FEW_BLOCKS),
        row_parts(ceil_div(call.rows, rows_each)),
        block_parts(ceil_div(last_block - first_block, BLOCKS_TOGETHER)) {}
};

// Runs the kernel on every task.
template <typename Rows>
void run_tasks(const LinearCall& call, const Rows& x, Kernel<Rows> kernel, const ParallelFor& parallel) {
  const Tasks tasks(call);
  const int64_t segments = Segments(call.weight.K, call.weight.group_size).count;
  const bool few = call.rows <= GEMV_ROWS;
  const int64_t task_work =
      BLOCKS_TOGETHER * BLOCK_N * std::max<int64_t>(call.weight.K, 1) * std::min(x.rows, tasks.rows_each);
  parallel(tasks.row_parts * tasks.block_parts, ceil_div(WORK_GRAIN, task_work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end;) {
      const int64_t row_part = task / tasks.block_parts, block_part = task % tasks.block_parts;
      const int64_t parts = std::min(end - task, tasks.block_parts - block_part);  // neighbors go in one call
      const int64_t row = row_part * tasks.rows_each, rows = std::min(tasks.rows_each, x.rows - row);
      const int64_t block = tasks.first_block + block_part * BLOCKS_TOGETHER;
      Output out = call.out;
      out.y = static_cast<char*>(out.y) + row * out.row_stride * dtype_bytes(out.dtype);
      kernel(call.weight, part(x, row, rows, segments), out, few, block,
             std::min(tasks.last_block, block + parts * BLOCKS_TOGETHER));
      task += parts;
    }
  });
}

}  // namespace

void run_linear(const LinearCall& call, const ParallelFor& parallel) {
  if (call.rows == 0 || call.out.first >= call.out.last) return;
#if TORCHCOINFER_X86
  if (call.isa == Isa::amx && amx::serves(call)) return amx::run_linear(call, parallel);
  if (has_avx512(call.isa)) return avx512::run_linear(call, parallel);
  if (call.isa == Isa::avx2 && avx2::are_few(call)) return avx2::run_few(call, parallel);
#endif
#if TORCHCOINFER_ARM
  if (call.isa == Isa::neon && arm_level() >= ArmLevel::dotprod) return neon::run_linear(call, parallel);
#endif
  const Segments segments(call.weight.K, call.weight.group_size);
  const int64_t rows = call.rows, stride = segments.tiles * TILE_K;
  const int64_t grain = ceil_div(ELEMENT_GRAIN, std::max<int64_t>(stride, 1));
  if (call.activation_bits == 8) {
    const Buffer<int8_t> values(rows * stride);
    const Buffer<float> scales(rows);
    const Buffer<int32_t> sums(rows * segments.count);
    parallel(rows, grain, [&](int64_t begin, int64_t end) {
      code_rows(call.x, segments, call.isa, begin, end, values.get(), scales.get(), sums.get());
    });
    run_tasks<CodeRows>(call, {values.get(), scales.get(), sums.get(), rows, stride}, code_kernel(call.isa), parallel);
    return;
  }
  const Buffer<float> sum_buffer(call.weight.zeros ? rows * segments.count : 0);
  float* sums = call.weight.zeros ? sum_buffer.get() : nullptr;
  const Buffer<float> values(rows * stride);
  parallel(rows, grain, [&](int64_t begin, int64_t end) {
    float_rows(call.x, segments, call.isa, begin, end, values.get(), sums);
  });
  run_tasks<FloatRows>(call, {values.get(), sums, rows, stride}, float_kernel(call.isa), parallel);
}

}  // namespace torchcoinfer
