// What Hopper (sm_90a) adds, one named wrapper per PTX instruction: kernels that start early, barriers that count bytes,
// bulk copies to shared memory, warpgroup matrix products (wgmma). A kernel that uses more than the first has a body
// only where TORCHCOINFER_SM90A is 1.
//
// wgmma m64nNk16, with w the warp of its warpgroup (four warps from a multiple of four on), g = lane / 4, t = lane % 4:
//
//   A, registers: register r = row 16w + g + 8 (r % 2), columns from 2t + 8 (r / 2), two 16-bit values, as in mma_16816
//   B, shared memory: N rows of 16 columns in `swizzled_rows`
//   D: value 4j + i = row 16w + g + 8 (i / 2), column 8j + 2t + i % 2
//
// A product runs on after its instruction: its registers are neither read nor written before `wait_products`, and
// `fence_products` stands between ordinary writes to them and the product.
//
// The host branch is tests/cuda/host_model/hopper_model.h, written from the PTX ISA.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/load.cuh"

#ifndef __CUDACC__
#include "hopper_model.h"
#endif

namespace torchcoinfer::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define TORCHCOINFER_SM90A 1
#else
#define TORCHCOINFER_SM90A 0
#endif

constexpr int WARPGROUP = 4;  // warps

// Rows of 64 16-bit values as wgmma reads them from shared memory: 128 bytes a row, eight rows a block of 1024 bytes at
// a multiple of 1024; the 16-byte chunk c of row r stands at place c ^ (r % 8) of its row.
constexpr int SWIZZLED_ROW_BYTES = 128;
constexpr int SWIZZLED_BLOCK_BYTES = 8 * SWIZZLED_ROW_BYTES;

// The descriptor of such rows from a shared-memory address, whole rows or from 32 bytes * i of the first one on.
// Bits 0-13 address, 16-29 leading offset (unused when swizzled), 32-45 bytes between blocks of eight rows, all in units
// of 16 bytes; 62-63: 1 = 128-byte swizzle.
__host__ __device__ constexpr uint64_t swizzled_rows(uint32_t address) {
  return (address & 0x3ffffu) >> 4 | uint64_t{1} << 16 | uint64_t{SWIZZLED_BLOCK_BYTES >> 4} << 32 | uint64_t{1} << 62;
}

#ifdef __CUDACC__

// --- kernels of one stream

// The kernel after this one, if launched by `launch_early`, may start from here on.
__device__ __forceinline__ void admit_kernel_after() {
#if TORCHCOINFER_SM90A
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// Until the kernel before this one has ended; the first access to what it wrote comes after.
__device__ __forceinline__ void await_kernel_before() {
#if TORCHCOINFER_SM90A
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// --- barriers in shared memory: a phase ends when `arrivals` threads have arrived and all expected bytes are there

__device__ __forceinline__ void start_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals)
                          : "memory");
}

// What this thread wrote to shared memory, barriers included, is seen by bulk copies and wgmma from here on.
__device__ __forceinline__ void publish_shared() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and makes the phase wait for so many bytes of bulk copies.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)),
                          "r"(bytes)
                          : "memory");
}

// Until the phase of this parity (0 for the first) has ended.
__device__ __forceinline__ void await_phase(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Starts copying to shared memory; the bytes count at the barrier when they have landed. Addresses and size are
// multiples of 16.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
          shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// --- products of a warpgroup: all its threads call together

__device__ __forceinline__ void fence_products() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

// Closes the group of products since the last one.
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Until at most PENDING groups are under way.
template <int PENDING>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}

// After `wait_products`: the compiler reads these registers no earlier than here.
template <int COUNT>
__device__ __forceinline__ void keep_sums(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d = A B, or d += A B; b: a descriptor.
template <typename T>
__device__ __forceinline__ void multiply_rows(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool adds);
template <typename T>
__device__ __forceinline__ void multiply_rows(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool adds);

#define D8(i)                                                                                             \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)
#define TORCHCOINFER_WGMMA(T, type)                                                                                  \
  template <>                                                                                                        \
  __device__ __forceinline__ void multiply_rows<T>(float(&d)[32], const uint32_t(&a)[4], uint64_t b, bool adds) {    \
    asm volatile(                                                                                         \
        "{\n.reg .pred adds;\nsetp.ne.b32 adds, %37, 0;\n"                                                           \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                                  \
        " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                   \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "                                         \
        "{%32,%33,%34,%35}, %36, adds, 1, 1, 0;\n}\n"                                                                \
        : D32(0)                                                                                                     \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(adds)));                          \
  }                                                                                                                  \
  template <>                                                                                                        \
  __device__ __forceinline__ void multiply_rows<T>(float(&d)[64], const uint32_t(&a)[4], uint64_t b, bool adds) {    \
    asm volatile(                                                                                         \
        "{\n.reg .pred adds;\nsetp.ne.b32 adds, %69, 0;\n"                                                           \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                                 \
        " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                   \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                                           \
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                           \
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "                                         \
        "{%64,%65,%66,%67}, %68, adds, 1, 1, 0;\n}\n"                                                                \
        : D32(0), D32(32)                                                                                            \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(adds)));                          \
  }
TORCHCOINFER_WGMMA(__half, "f16")
TORCHCOINFER_WGMMA(__nv_bfloat16, "bf16")
#undef TORCHCOINFER_WGMMA
#undef D32
#undef D8

#else

inline void admit_kernel_after() {}

inline void await_kernel_before() {}

using host_model::arrive;
using host_model::arrive_expecting;
using host_model::await_phase;
using host_model::commit_products;
using host_model::copy_bulk;
using host_model::fence_products;
using host_model::multiply_rows;
using host_model::publish_shared;
using host_model::shared_address;
using host_model::start_barrier;
using host_model::wait_products;

template <int COUNT>
void keep_sums(float (&)[COUNT]) {}

#endif

}  // namespace torchcoinfer::cuda
