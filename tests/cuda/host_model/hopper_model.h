// What Hopper adds, on the host, after the PTX ISA: barriers that count bytes (mbarrier), bulk copies to shared memory
// (cp.async.bulk), products of a warpgroup (wgmma m64nNk16, A from registers, B from shared memory).
//
// What runs by itself runs as late as it may: a bulk copy lands when no thread can go on, a product happens when it is
// waited for. Until then targets hold poison, and who touches a product's registers meanwhile is told. Bulk copies and
// products see shared memory as it was published: ordinary writes show there after `publish_shared` only. A thread's
// publishing is taken to publish what all have written.

#pragma once

#include "cuda_bf16.h"
#include "host_model.h"

namespace host_model {

// Addresses of shared memory as a GPU counts them: the first KiB is the system's.
uint32_t shared_address(const void* place);

void start_barrier(uint64_t* barrier, int arrivals);
void publish_shared();
void arrive(uint64_t* barrier);
void arrive_expecting(uint64_t* barrier, uint32_t bytes);
void await_phase(uint64_t* barrier, uint32_t parity);
void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier);

void fence_products();
void commit_products();
void await_products(int pending);
// d: `columns` / 2 sums of the lane
void multiply_later(float* d, int columns, const uint32_t* a, uint64_t b, bool adds, bool bfloat16);

template <int PENDING>
void wait_products() {
  await_products(PENDING);
}

template <typename T, int COUNT>
void multiply_rows(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b, bool adds) {
  multiply_later(d, 2 * COUNT, a, b, adds, std::is_same_v<T, __nv_bfloat16>);
}

// --- for the scheduler

void begin_hopper_block(int threads);
bool phase_ended(const uint64_t* barrier, uint32_t parity);
bool land_bulk_copy();                   // one of those under way; false: there is none
std::string end_hopper_block(int threads);  // empty, or what is wrong

}  // namespace host_model
