// Loads, one named wrapper each: streaming reads, asynchronous copies to shared memory, ldmatrix.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#ifndef __CUDACC__
#include "mma_model.h"
#endif

namespace torchcoinfer::cuda {

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes that are read once: past L1, first to leave L2. The address is a multiple of 16.
__device__ __forceinline__ uint4 load_once(const uint4* place) {
  uint64_t policy;  // not volatile: the compiler makes it once
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;\n"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(place), "l"(policy));
  return value;
}

// Starts copying 16 bytes past L1; where `wanted` is false it writes zeros and reads nothing.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool wanted = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
               "r"(wanted ? 16 : 0)
               : "memory");
}

// The same for 4 or 8 bytes, through L1.
template <int BYTES>
__device__ __forceinline__ void copy_async_small(void* shared, const void* global, bool wanted = true) {
  static_assert(BYTES == 4 || BYTES == 8, "cp.async.ca copies 4 or 8 bytes here");
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)), "l"(global),
               "n"(BYTES), "r"(wanted ? BYTES : 0)
               : "memory");
}

// Closes the calling thread's group of copies.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Until at most PENDING groups of the calling thread are open; other threads see the bytes after a barrier.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

// COUNT 8x8 matrices of 16-bit values. Lane 8m + r gives the address of row r of matrix m (16 bytes, a multiple of 16);
// register m gets row lane / 4, columns 2 (lane % 4) and the next.
template <int COUNT>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[COUNT], const void* row) {
  static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4, "ldmatrix loads 1, 2 or 4 matrices");
  const uint32_t address = shared_address(row);
  if constexpr (COUNT == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n" : "=r"(r[0]) : "r"(address) : "memory");
  else if constexpr (COUNT == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// The same with every matrix transposed: register m gets rows 2 (lane % 4) and the next, column lane / 4.
template <int COUNT>
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[COUNT], const void* row) {
  static_assert(COUNT == 2 || COUNT == 4, "ldmatrix.trans for 2 or 4 matrices");
  const uint32_t address = shared_address(row);
  if constexpr (COUNT == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// Bytes of a and b (0 .. 3, 4 .. 7) by the nibbles 0 .. 7 of the selector's low half; its high half may hold anything.
__device__ __forceinline__ uint32_t select_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t value;
  asm("prmt.b32 %0, %1, %2, %3;\n" : "=r"(value) : "r"(a), "r"(b), "r"(selector));
  return value;
}

// into | (word & mask): one instruction, of which the compiler would make two where `into` is a constant, too.
__device__ __forceinline__ uint32_t masked_into(uint32_t into, uint32_t word, uint32_t mask) {
  uint32_t value;
  asm("lop3.b32 %0, %1, %2, %3, 0xf8;\n" : "=r"(value) : "r"(into), "r"(word), "r"(mask));
  return value;
}

// Keeps a value where it is: the compiler may not compute it again.
__device__ __forceinline__ void keep(uint32_t& value) {
  asm volatile("" : "+r"(value));
}

template <typename T>
__device__ __forceinline__ void keep(const T*& pointer) {
  asm volatile("" : "+l"(pointer));
}

#else

inline uint32_t select_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector & 0xffffu);
}

inline uint32_t masked_into(uint32_t into, uint32_t word, uint32_t mask) {
  return into | (word & mask);
}

inline void keep(uint32_t&) {}

template <typename T>
void keep(const T*&) {}

inline uint4 load_once(const uint4* place) {
  return *host_model::aligned(place, 16);
}

inline void copy_async(void* shared, const void* global, bool wanted = true) {
  host_model::aligned(shared, 16);
  host_model::copy_later(shared, host_model::aligned(global, 16), 16, wanted ? 16 : 0);
}

template <int BYTES>
void copy_async_small(void* shared, const void* global, bool wanted = true) {
  host_model::aligned(shared, BYTES);
  host_model::copy_later(shared, host_model::aligned(global, BYTES), BYTES, wanted ? BYTES : 0);
}

inline void commit_copies() {
  host_model::commit_copies();
}

template <int PENDING>
void wait_copies() {
  host_model::wait_copies(PENDING);
}

template <int COUNT>
void load_matrices(uint32_t (&registers)[COUNT], const void* row) {
  host_model::load_matrices<COUNT, false>(registers, row);
}

template <int COUNT>
void load_matrices_transposed(uint32_t (&registers)[COUNT], const void* row) {
  host_model::load_matrices<COUNT, true>(registers, row);
}

#endif

}  // namespace torchcoinfer::cuda
