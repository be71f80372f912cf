// Small kernels that probe the host model itself: matrix instructions against plain sums, and mistakes that it must
// report. C functions for tests/cuda/test_host_model.py; nullptr, or what went wrong.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/launch.cuh"
#include "cuda/load.cuh"
#include "cuda/mma.cuh"

#define PROBE extern "C" __attribute__((visibility("default"))) const char*

namespace torchcoinfer::cuda {
namespace {

// --- one warp, one instruction

template <typename T>
__global__ void multiply_16(const T* a, const T* b, float* d, bool by_ldmatrix) {  // A [16, 16], B [8, 16], D [16, 8]
  __shared__ __align__(16) unsigned char staged[2 * (16 * 16 + 8 * 16)];
  T* a_rows = reinterpret_cast<T*>(staged);
  T* b_rows = a_rows + 16 * 16;
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  copy_async(a_rows + lane * 8, a + lane * 8);
  copy_async(b_rows + lane % 16 * 8, b + lane % 16 * 8);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  uint32_t fa[4], fb[2];
  if (by_ldmatrix) {
    load_matrices<4>(fa, a_rows + lane % 16 * 16 + lane / 16 * 8);
    load_matrices<2>(fb, b_rows + lane % 8 * 16 + lane / 8 % 2 * 8);
  } else {
    const auto pair = [](const T* place) { return *reinterpret_cast<const uint32_t*>(place); };
    for (int r = 0; r < 4; ++r) fa[r] = pair(a_rows + (g + 8 * (r % 2)) * 16 + 2 * t + 8 * (r / 2));
    for (int r = 0; r < 2; ++r) fb[r] = pair(b_rows + g * 16 + 2 * t + 8 * r);
  }
  float sums[4] = {};
  mma_16816<T>(sums, fa, fb);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

template <typename A, typename B>
__global__ void multiply_8(const A* a, const B* b, int* d) {  // A [16, 32], B [8, 32], D [16, 8]
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t fa[4], fb[2];
  for (int r = 0; r < 4; ++r)
    fa[r] = *reinterpret_cast<const uint32_t*>(a + (g + 8 * (r % 2)) * 32 + 4 * t + 16 * (r / 2));
  for (int r = 0; r < 2; ++r) fb[r] = *reinterpret_cast<const uint32_t*>(b + g * 32 + 4 * t + 16 * r);
  int sums[4] = {};
  mma_16832<A, B>(sums, fa, fb);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

// kept [16, 16] of A [16, 32], index [16, 8] nibbles, B [8, 32], D [16, 8]
template <typename T, int SELECTOR>
__global__ void multiply_sparse(const T* kept, const uint8_t* index, const T* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4, h = t % 2;
  uint32_t fa[4], fb[4], metadata = 0;
  for (int r = 0; r < 4; ++r)
    fa[r] = *reinterpret_cast<const uint32_t*>(kept + (g + 8 * (r % 2)) * 16 + 2 * t + 8 * (r / 2));
  for (int r = 0; r < 4; ++r) fb[r] = *reinterpret_cast<const uint32_t*>(b + g * 32 + 2 * t + 8 * r);
  for (int i = 0; i < 8; ++i) metadata |= static_cast<uint32_t>(index[(g + i / 4 * 8) * 8 + 4 * h + i % 4]) << 4 * i;
  if (t / 2 != SELECTOR) metadata = 0xffffffffu;  // nobody may read it
  float sums[4] = {};
  mma_sp_16832<T, SELECTOR>(sums, fa, fb, metadata);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

// --- mistakes: y [64] should be the reversed x [64]

enum Mistake { none, no_barrier, barrier_missed, copy_not_awaited, shuffle_outside, shared_overrun };

__global__ void reverse(const int* x, int* y, int mistake) {
  __shared__ __align__(16) int values[64];
  const int i = threadIdx.x;
  if (mistake == copy_not_awaited) {
    if (i % 4 == 0) copy_async(values + i, x + i);
    commit_copies();
  } else {
    values[i] = x[i];
  }
  if (mistake == shared_overrun) static_cast<int*>(dynamic_shared())[i] = 0;
  if (mistake != no_barrier && !(mistake == barrier_missed && i % 2)) __syncthreads();
  if (mistake == barrier_missed) __syncwarp();
  int value = values[63 - i];
  if (mistake == shuffle_outside) value = __shfl_sync(1u << i % 32, value, 31 - i % 32);
  y[i] = value;
}

}  // namespace

PROBE probe_multiply_16(const void* a, const void* b, float* d, int bfloat16, int by_ldmatrix) {
  if (bfloat16)
    launch(multiply_16<__nv_bfloat16>, 1, 32, 0, nullptr, static_cast<const __nv_bfloat16*>(a),
           static_cast<const __nv_bfloat16*>(b), d, by_ldmatrix != 0);
  else
    launch(multiply_16<__half>, 1, 32, 0, nullptr, static_cast<const __half*>(a), static_cast<const __half*>(b), d,
           by_ldmatrix != 0);
  return launch_error();
}

PROBE probe_multiply_8(const void* a, const void* b, int* d, int a_signed, int b_signed) {
  const auto* ua = static_cast<const uint8_t*>(a);
  const auto* sa = static_cast<const int8_t*>(a);
  const auto* ub = static_cast<const uint8_t*>(b);
  const auto* sb = static_cast<const int8_t*>(b);
  if (a_signed && b_signed)
    launch(multiply_8<int8_t, int8_t>, 1, 32, 0, nullptr, sa, sb, d);
  else if (a_signed)
    launch(multiply_8<int8_t, uint8_t>, 1, 32, 0, nullptr, sa, ub, d);
  else if (b_signed)
    launch(multiply_8<uint8_t, int8_t>, 1, 32, 0, nullptr, ua, sb, d);
  else
    launch(multiply_8<uint8_t, uint8_t>, 1, 32, 0, nullptr, ua, ub, d);
  return launch_error();
}

PROBE probe_multiply_sparse(const void* kept, const uint8_t* index, const void* b, float* d, int selector) {
  const auto* values = static_cast<const __half*>(kept);
  launch(selector ? multiply_sparse<__half, 1> : multiply_sparse<__half, 0>, 1, 32, 0, nullptr, values, index,
         static_cast<const __half*>(b), d);
  return launch_error();
}

PROBE probe_reverse(const int* x, int* y, int mistake) {
  launch(reverse, 1, 64, mistake == shared_overrun ? 128 : 0, nullptr, x, y, mistake);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
