// Small kernels that probe the model of Hopper: products of a warpgroup against plain sums, and mistakes that it must
// report or show. C functions for tests/cuda/test_host_hopper_model.py; nullptr, or what went wrong.

#include "cuda/hopper.cuh"
#include "cuda/launch.cuh"

#define PROBE extern "C" __attribute__((visibility("default"))) const char*

namespace torchcoinfer::cuda {
namespace {

constexpr int K = 64;  // a swizzled row

enum Mistake {
  none,
  not_published,    // B written by threads, not published
  not_fenced,       // a second group without its fence
  not_awaited,      // sums read early
  a_changed,        // operand A changed early
  never_awaited,    // products under way at the end
  stage_refilled,   // a bulk copy where a product still reads
  bytes_missing,    // a phase that waits for bytes nobody copies
  not_started,      // a copy to a barrier that was not published
  other_products,   // one warp's products differ
};

// a [64, K], b: N rows of K in swizzled order, d [64, N] = a b^T + d; bulk: B arrives by a bulk copy
template <typename T, int N>
__global__ void multiply(const T* a, const unsigned char* b, float* d, bool bulk, int mistake) {
  auto* rows = static_cast<unsigned char*>(dynamic_shared());
  auto* barrier = reinterpret_cast<uint64_t*>(rows + N * SWIZZLED_ROW_BYTES);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, row = thread / 32 * 16 + lane / 4, t = lane % 4;
  if (thread == 0) start_barrier(barrier, 1);
  if (thread == 0 && mistake != not_started) publish_shared();
  __syncthreads();
  if (bulk && thread == 0) {
    arrive_expecting(barrier, N * SWIZZLED_ROW_BYTES + (mistake == bytes_missing ? 16 : 0));
    copy_bulk(rows, b, N * SWIZZLED_ROW_BYTES, barrier);
  }
  if (bulk) await_phase(barrier, 0);
  for (int i = thread; !bulk && i < N * SWIZZLED_ROW_BYTES; i += 128) rows[i] = b[i];
  if (!bulk && mistake != not_published) publish_shared();
  __syncthreads();
  float sums[N / 2];
  for (int i = 0; i < N / 2; ++i) sums[i] = d[(row + 8 * (i / 2 % 2)) * N + i / 4 * 8 + 2 * t + i % 2];
  uint32_t fragments[K / 16][4];
  for (int k = 0; k < K / 16; ++k) {
    for (int r = 0; r < 4; ++r)
      fragments[k][r] =
          *reinterpret_cast<const uint32_t*>(a + (row + 8 * (r % 2)) * K + 16 * k + 2 * t + 8 * (r / 2));
    if (k == 0 || mistake != not_fenced) fence_products();
    const int column = mistake == other_products && thread >= 96 ? 0 : k;
    multiply_rows<T>(sums, fragments[k], swizzled_rows(shared_address(rows) + 32 * column), true);
    commit_products();
    if (mistake == a_changed) fragments[k][0] = 0;
  }
  if (mistake == stage_refilled && thread == 0) copy_bulk(rows, b + 16, 16, barrier);
  if (mistake == not_awaited)
    wait_products<1>();
  else if (mistake != never_awaited)
    wait_products<0>();
  keep_sums(sums);
  for (int i = 0; i < N / 2; ++i) d[(row + 8 * (i / 2 % 2)) * N + i / 4 * 8 + 2 * t + i % 2] = sums[i];
  if (mistake == not_awaited) wait_products<0>();
  if (mistake == stage_refilled && thread == 0) arrive_expecting(barrier, 16);
  if (mistake == stage_refilled) await_phase(barrier, 1);
}

template <typename T>
void run(const void* a, const void* b, float* d, int columns, bool bulk, int mistake) {
  launch(columns == 64 ? multiply<T, 64> : multiply<T, 128>, 1, 128,
         static_cast<size_t>(columns) * SWIZZLED_ROW_BYTES + 8, nullptr, static_cast<const T*>(a),
         static_cast<const unsigned char*>(b), d, bulk, mistake);
}

}  // namespace

PROBE probe_warpgroup(const void* a, const void* b, float* d, int columns, int bfloat16, int bulk, int mistake) {
  (bfloat16 ? run<__nv_bfloat16> : run<__half>)(a, b, d, columns, bulk != 0, mistake);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
