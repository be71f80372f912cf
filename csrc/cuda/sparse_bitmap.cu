// Which bitmap matrices the fast kernels serve, and with how many warps.

#include "cuda/fast_sparse_bitmap.h"

#include "cuda/fragments.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int64_t CROWDED = 3;  // thread blocks a multiprocessor from which half as many warps fill it

template <typename T>
const char* run(const LaunchBitmap& all) {
  switch (all.w.bits) {
    case 0:
      return run_bitmap<T, 0>(all);
    case 2:
      return run_bitmap<T, 2>(all);
    case 3:
      return run_bitmap<T, 3>(all);
    case 4:
      return run_bitmap<T, 4>(all);
    case 5:
      return run_bitmap<T, 5>(all);
    case 6:
      return run_bitmap<T, 6>(all);
    default:
      return run_bitmap<T, 8>(all);
  }
}

const char* run_typed(LaunchBitmap all, Element type) {
  const bool crowded = ceil_div(all.w.N, BLOCK_N) >= CROWDED * processor_count();
  all.warps = crowded ? MOST_WARPS / 2 : MOST_WARPS;
  return type == Element::float16 ? run<__half>(all) : run<__nv_bfloat16>(all);
}

}  // namespace

bool bitmap_serves(const SparseMatrix& w, Element type) {
  if (w.paired || type == Element::float32 || w.K == 0 || w.N == 0) return false;
  const bool aligned = reinterpret_cast<uintptr_t>(w.values) % LANE_BYTES == 0;
  return aligned && (w.bits || w.value_type == type);
}

const char* fast_bitmap(const SparseMatrix& w, const void* x, int64_t x_columns, int64_t rows, const float* row_scales,
                        const float* bias, void* y, Element type, void* stream) {
  if (rows == 0) return nullptr;
  return run_typed({w, 0, x, x_columns, rows, row_scales, bias, y, stream}, type);
}

const char* bitmap_dequantize(const SparseMatrix& w, void* out, Element type, void* stream) {
  return run_typed({w, 0, nullptr, 0, 0, nullptr, nullptr, out, stream}, type);
}

}  // namespace torchcoinfer::cuda
