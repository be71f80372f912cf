// Warp-level matrix instructions, one named wrapper each. All 32 lanes call together. Fragments, with g = lane / 4 and
// t = lane % 4 (PTX ISA, "Matrix fragments for mma"); a register holds two 16-bit or four 8-bit values, lowest first:
//
//   16816  A: register r = row g + 8 (r % 2), columns from 2t + 8 (r / 2)    B: register r = column g, rows from 2t + 8 r
//   16832  A: register r = row g + 8 (r % 2), columns from 4t + 16 (r / 2)   B: register r = column g, rows from 4t + 16 r
//   C and D of all: value i = row g + 8 (i / 2), column 2t + i % 2
//
// The host branch is tests/cuda/host_model/mma_model.h, written from the same tables.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#ifndef __CUDACC__
#include "mma_model.h"
#endif

namespace torchcoinfer::cuda {

#ifdef __CUDACC__

template <typename T>
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_16816<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_16816<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#define TORCHCOINFER_MMA_16832(A, B, types)                                                                        \
  template <>                                                                                                      \
  __device__ __forceinline__ void mma_16832<A, B>(int(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) {      \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." types                                                    \
                 ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"                                    \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
  }

// A, B: int8_t or uint8_t.
template <typename A, typename B>
__device__ __forceinline__ void mma_16832(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
TORCHCOINFER_MMA_16832(int8_t, int8_t, "s8.s8")
TORCHCOINFER_MMA_16832(uint8_t, int8_t, "u8.s8")
TORCHCOINFER_MMA_16832(int8_t, uint8_t, "s8.u8")
TORCHCOINFER_MMA_16832(uint8_t, uint8_t, "u8.u8")
#undef TORCHCOINFER_MMA_16832

// A 16x32 with two kept of four columns: a as in 16816 over the kept ones; b[r] = column g, rows from 2t + 8 r. Of each
// four lanes, 2 SELECTOR + h gives the indices of columns 16h .. 16h + 15: row g in the low half, row g + 8 in the high
// one, a nibble per four columns, i0 | i1 << 2 with i0 < i1.
template <typename T, int SELECTOR>
__device__ __forceinline__ void mma_sp_16832(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                             uint32_t metadata) {
  static_assert(SELECTOR == 0 || SELECTOR == 1, "two lanes of four give the metadata");
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
          "n"(SELECTOR));
  } else {
    asm volatile(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
          "n"(SELECTOR));
  }
}

#else

using host_model::mma_16816;
using host_model::mma_16832;
using host_model::mma_sp_16832;

#endif

}  // namespace torchcoinfer::cuda
