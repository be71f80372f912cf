// CUDA on the host, for tests: the .cu sources compile with a C++ compiler against this folder's headers and run on the
// CPU, one block after another, every thread a fiber. What a GPU leaves undefined shows: shared memory is poisoned at
// every block's start, asynchronous copies land as late as they may, barriers that cannot complete are errors, and the
// order in which threads run can be changed (a result that depends on it lacks a barrier).
//
// hopper_model.h adds barriers that count bytes, bulk copies and wgmma. Not modelled: time, caches, divergence within a
// warp beyond what collectives need, clusters, tensor maps.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One section, so that every block can start from poison. Only kernels in anonymous namespaces may declare it.
#define __shared__ static __attribute__((section("cuda_shared")))

namespace host_model {

constexpr int WARP = 32;
constexpr int PAYLOAD_BYTES = 64;  // what a lane can bring to a collective

// What lanes meet for. Lanes of one collective must agree on it.
enum class Meeting : int { sync = 1, shuffle, vote, load_matrix, multiply, reduce, match, fence, commit, await };

uint3 thread_index();

// Stops the fiber until all live threads of the block are here; `value` is summed over them.
int meet_block(int value);

// What each lane of the mask brought, lane by lane: valid until the caller's next collective.
using Brought = const unsigned char (*)[PAYLOAD_BYTES];
Brought meet_warp(Meeting kind, uint32_t mask, const void* payload, int bytes);
int lane();
int thread_number();  // within the block

// Stops the fiber until the phase of a barrier has ended (hopper_model.h).
void meet_phase(const uint64_t* barrier, uint32_t parity);

// What the fiber did before `release_to` comes before what another does after `acquire_from` the same address: for the
// race detector.
void release_to(void* address);
void acquire_from(void* address);

void* dynamic_shared_memory();
size_t dynamic_shared_bytes();
int poison();
int order();

// Copies that happen when the thread waits for their group, not before.
void copy_later(void* target, const void* source, int bytes, int read_bytes);
void commit_copies();
void wait_copies(int pending);

void run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, const std::function<void()>& kernel);

// The pointer, if it is as aligned as wide accesses must be.
template <typename T>
T* aligned(T* place, uintptr_t bytes) {
  if (reinterpret_cast<uintptr_t>(place) % bytes) throw std::runtime_error("a wide access that is not aligned");
  return place;
}

// Compiled with the scheduler, which the race detector does not watch.
void read_payload(void* target, const unsigned char* source, size_t bytes);

template <typename T>
T brought(Brought all, int lane) {
  T value;
  read_payload(&value, all[lane], sizeof value);
  return value;
}

}  // namespace host_model

extern dim3 blockIdx, blockDim, gridDim;  // one block runs at a time
#define threadIdx (::host_model::thread_index())
constexpr int warpSize = host_model::WARP;

// --- barriers and warp collectives

inline void __syncthreads() {
  host_model::meet_block(0);
}
inline int __syncthreads_count(int predicate) {
  return host_model::meet_block(predicate != 0);
}
inline int __syncthreads_or(int predicate) {
  return host_model::meet_block(predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate) {
  return host_model::meet_block(predicate == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  host_model::meet_warp(host_model::Meeting::sync, mask, nullptr, 0);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T host_shuffle(unsigned mask, T value, int source, bool inside) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  const host_model::Brought all = host_model::meet_warp(host_model::Meeting::shuffle, mask, &value, sizeof value);
  if (!inside) return value;
  if (!(mask >> source & 1)) throw std::runtime_error("a shuffle reads from a lane outside its mask");
  return host_model::brought<T>(all, source);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  return host_shuffle(mask, value, host_model::lane() / width * width + (source & (width - 1)), true);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = warpSize) {
  const int source = host_model::lane() ^ flip;
  return host_shuffle(mask, value, source, source / width <= host_model::lane() / width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int source = host_model::lane() - static_cast<int>(delta);
  return host_shuffle(mask, value, source, source >= host_model::lane() / width * width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int source = host_model::lane() + static_cast<int>(delta);
  return host_shuffle(mask, value, source, source < (host_model::lane() / width + 1) * width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const int flag = predicate != 0;
  const host_model::Brought all = host_model::meet_warp(host_model::Meeting::vote, mask, &flag, sizeof flag);
  unsigned votes = 0;
  for (int lane = 0; lane < warpSize; ++lane)
    if (mask >> lane & 1 && host_model::brought<int>(all, lane)) votes |= 1u << lane;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
template <typename T, typename Combine>
T host_reduce(unsigned mask, T value, Combine combine) {
  const host_model::Brought all = host_model::meet_warp(host_model::Meeting::reduce, mask, &value, sizeof value);
  bool first = true;
  T result{};
  for (int lane = 0; lane < warpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const T other = host_model::brought<T>(all, lane);
    result = first ? other : combine(result, other);
    first = false;
  }
  return result;
}
inline int __reduce_add_sync(unsigned mask, int value) {
  return host_reduce(mask, value, [](int a, int b) { return a + b; });
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return host_reduce(mask, value, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return host_reduce(mask, value, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return host_reduce(mask, value, [](unsigned a, unsigned b) { return a | b; });
}

// --- atomics: fibers change at collectives only, other threads of the process do not take part

template <typename T, typename Change>
T host_atomic(T* place, Change change) {
  T before, after;
  __atomic_load(place, &before, __ATOMIC_RELAXED);
  after = change(before);
  __atomic_store(place, &after, __ATOMIC_RELAXED);
  return before;
}
template <typename T>
T atomicAdd(T* place, T value) {
  return host_atomic(place, [&](T old) { return old + value; });
}
template <typename T>
T atomicMax(T* place, T value) {
  return host_atomic(place, [&](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* place, T value) {
  return host_atomic(place, [&](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicOr(T* place, T value) {
  return host_atomic(place, [&](T old) { return old | value; });
}
template <typename T>
T atomicExch(T* place, T value) {
  return host_atomic(place, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* place, T expected, T value) {
  return host_atomic(place, [&](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned* place, unsigned most) {
  return host_atomic(place, [&](unsigned old) { return old >= most ? 0 : old + 1; });
}
