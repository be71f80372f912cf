// See hopper_model.h. Compiled, like the scheduler, without the race detector: its state is nobody's race.

#include "hopper_model.h"

#include <array>
#include <deque>
#include <list>
#include <map>
#include <string>
#include <vector>

#include "mma_model.h"

namespace host_model {
namespace {

constexpr uint32_t FIRST_ADDRESS = 1024;
constexpr int LANE_A = 4, K = 16, WARPS_OF_GROUP = 4;

struct Barrier {
  int arrivals, missing;
  int64_t bytes;  // expected and not landed
  uint32_t phase;
  bool published;
};

struct BulkCopy {
  unsigned char* target;
  const unsigned char* source;
  uint32_t bytes;
  uint64_t* barrier;
};

struct Product {
  float* d;
  int columns;
  bool adds, bfloat16;
  uint64_t b;
  const uint32_t* a_place;
  std::array<uint32_t, LANE_A> a;          // the lane's own
  std::array<std::array<double, K>, 2> rows;  // g and g + 8 of A
};

// Accumulators that products under way write: their values so far; the registers hold poison.
struct Sums {
  std::vector<float> values;
  int under_way = 0;
};

struct Lane {
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
  std::map<float*, Sums> sums;
  bool fenced = false;
  uint64_t issued = 0;  // of descriptors and sizes, in their order
};

// One block at a time, guarded by the scheduler's lock.
struct Hopper {
  std::map<const uint64_t*, Barrier> barriers;
  std::list<BulkCopy> copies;
  std::vector<Lane> lanes;
  std::vector<unsigned char> published;  // dynamic shared memory as copies and products see it
  uint64_t random = 1;
};

Hopper hopper;

unsigned char* shared_base() {
  return static_cast<unsigned char*>(dynamic_shared_memory());
}

Lane& own() {
  return hopper.lanes[thread_number()];
}

Barrier& barrier_at(const uint64_t* place) {
  const auto found = hopper.barriers.find(place);
  if (found == hopper.barriers.end()) throw std::runtime_error("a barrier that nobody has started");
  return found->second;
}

void end_phase_if_complete(Barrier& barrier) {
  if (barrier.missing || barrier.bytes) return;
  ++barrier.phase;
  barrier.missing = barrier.arrivals;
}

// Unseen by the race detector, which watches memcpy wherever it is called from.
void copy_unseen(unsigned char* target, const unsigned char* source, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(target)[i] = source[i];
}

unsigned char* published_at(const unsigned char* place) {
  return hopper.published.data() + (place - shared_base());
}

uint32_t poison_word() {
  return static_cast<uint32_t>(poison()) * 0x01010101u;
}

// Element (row, k) of swizzled rows; bits 4-6 of an address are changed by its bits 7-9.
uint16_t b_element(uint64_t descriptor, int row, int k) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t plain = start + row / 8 * stride + row % 8 * 128 + 2 * k;
  const uint32_t offset = (plain ^ (plain >> 7 & 7) << 4) - FIRST_ADDRESS;
  if (plain < FIRST_ADDRESS || offset + 2 > dynamic_shared_bytes())
    throw std::runtime_error("wgmma reads beyond dynamic shared memory");
  const unsigned char* place = hopper.published.data() + offset;
  return static_cast<uint16_t>(place[0] | place[1] << 8);
}

void check_descriptor(uint64_t descriptor) {
  if (descriptor >> 62 != 1) throw std::runtime_error("a wgmma descriptor without the 128-byte swizzle");
  if (descriptor >> 49 & 7 || (descriptor & 0x3fff) << 4 & 0x380)
    throw std::runtime_error("swizzled rows that do not begin at a multiple of 1024");
}

void multiply_now(Lane& lane, const Product& product, int t) {
  for (int r = 0; r < LANE_A; ++r)
    if (product.a_place[r] != product.a[r])
      throw std::runtime_error("operand A of a wgmma changed before it was waited for");
  Sums& sums = lane.sums.at(product.d);
  for (int column = 0; column < product.columns; ++column) {
    if (column % 8 / 2 != t) continue;
    double b[K];
    for (int k = 0; k < K; ++k) {
      const uint32_t word = b_element(product.b, column, k);
      b[k] = product.bfloat16 ? half_of<__nv_bfloat16>(word, 0) : half_of<__half>(word, 0);
    }
    for (int h = 0; h < 2; ++h) {
      float& value = sums.values[column / 8 * 4 + 2 * h + column % 2];
      double sum = product.adds ? value : 0.;
      for (int k = 0; k < K; ++k) sum += product.rows[h][k] * b[k];
      value = static_cast<float>(sum);
    }
  }
  if (--sums.under_way) return;
  for (size_t i = 0; i < sums.values.size(); ++i) {
    if (host_bits<uint32_t>(product.d[i]) != poison_word())
      throw std::runtime_error("sums of a wgmma changed before it was waited for");
    product.d[i] = sums.values[i];
  }
  lane.sums.erase(product.d);
}

void meet(Meeting kind) {
  meet_warp(kind, 0xffffffffu, nullptr, 0);
}

}  // namespace

uint32_t shared_address(const void* place) {
  return FIRST_ADDRESS + static_cast<uint32_t>(static_cast<const unsigned char*>(place) - shared_base());
}

// --- barriers and bulk copies

void start_barrier(uint64_t* barrier, int arrivals) {
  if (hopper.barriers.count(aligned(barrier, 8))) throw std::runtime_error("a barrier that is started twice");
  hopper.barriers[barrier] = {arrivals, arrivals, 0, 0, false};
}

void publish_shared() {
  for (auto& [place, barrier] : hopper.barriers) barrier.published = true;
  copy_unseen(hopper.published.data(), shared_base(), dynamic_shared_bytes());
}

void arrive(uint64_t* barrier) {
  arrive_expecting(barrier, 0);
}

void arrive_expecting(uint64_t* place, uint32_t bytes) {
  Barrier& barrier = barrier_at(place);
  release_to(place);
  barrier.bytes += bytes;
  --barrier.missing;
  end_phase_if_complete(barrier);
}

void await_phase(uint64_t* barrier, uint32_t parity) {
  barrier_at(barrier);
  if (!phase_ended(barrier, parity)) meet_phase(barrier, parity);
  acquire_from(barrier);
}

void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  auto* target = static_cast<unsigned char*>(aligned(shared, 16));
  const auto* source = static_cast<const unsigned char*>(aligned(global, 16));
  if (bytes % 16 || bytes == 0) throw std::runtime_error("a bulk copy of bytes that are no multiple of 16");
  if (target < shared_base() || target + bytes > shared_base() + dynamic_shared_bytes())
    throw std::runtime_error("a bulk copy beyond dynamic shared memory");
  if (!barrier_at(barrier).published) throw std::runtime_error("a bulk copy to a barrier that was not published");
  std::memset(target, poison(), bytes);
  for (uint32_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(published_at(target))[i] = poison();
  hopper.copies.push_back({target, source, bytes, barrier});
  release_to(barrier);
}

// --- products

void fence_products() {
  meet(Meeting::fence);
  own().fenced = true;
}

void commit_products() {
  meet(Meeting::commit);
  Lane& lane = own();
  lane.groups.push_back(std::move(lane.open));
  lane.open.clear();
  lane.fenced = false;
}

void await_products(int pending) {
  meet(Meeting::await);
  Lane& lane = own();
  while (static_cast<int>(lane.groups.size()) > pending) {
    for (const Product& product : lane.groups.front()) multiply_now(lane, product, thread_number() % 4);
    lane.groups.pop_front();
  }
}

void multiply_later(float* d, int columns, const uint32_t* a, uint64_t b, bool adds, bool bfloat16) {
  struct {
    uint32_t a[LANE_A];
    uint64_t b;
    bool adds;
  } operand{{a[0], a[1], a[2], a[3]}, b, adds};
  const Brought all = meet_warp(Meeting::multiply, 0xffffffffu, &operand, sizeof operand);
  Lane& mine = own();
  if (!mine.fenced) throw std::runtime_error("a wgmma without wgmma.fence after the group before");
  check_descriptor(b);
  Product product{d, columns, adds, bfloat16, b, a, {a[0], a[1], a[2], a[3]}, {}};
  const int g = lane() / 4;
  for (int k = 0; k < K; ++k) {
    const auto other = brought<decltype(operand)>(all, 4 * g + k % 8 / 2);
    if (other.b != b || other.adds != adds) throw std::runtime_error("lanes of a wgmma disagree");
    for (int h = 0; h < 2; ++h) {
      const uint32_t word = other.a[h + k / 8 * 2];
      product.rows[h][k] = bfloat16 ? half_of<__nv_bfloat16>(word, k % 2) : half_of<__half>(word, k % 2);
    }
  }
  Sums& sums = mine.sums[d];
  if (sums.under_way++ == 0) {
    sums.values.assign(d, d + columns / 2);
    for (int i = 0; i < columns / 2; ++i) d[i] = host_bits<float>(poison_word());
  }
  mine.issued = (mine.issued * 31 + b) * 31 + static_cast<uint64_t>(columns) * 2 + adds;
  mine.open.push_back(product);
}

// --- for the scheduler

void begin_hopper_block(int threads) {
  hopper.barriers.clear();
  hopper.copies.clear();
  hopper.lanes.assign(threads, Lane{});
  hopper.published.assign(dynamic_shared_bytes(), static_cast<unsigned char>(poison()));
}

bool phase_ended(const uint64_t* barrier, uint32_t parity) {
  return (barrier_at(barrier).phase & 1) != parity;
}

bool land_bulk_copy() {
  if (hopper.copies.empty()) return false;
  hopper.random = hopper.random * 6364136223846793005u + 1442695040888963407u;
  const size_t last = hopper.copies.size() - 1;
  const size_t which = order() == 0 ? 0 : order() == 1 ? last : (hopper.random >> 33) % (last + 1);
  const auto found = std::next(hopper.copies.begin(), static_cast<std::ptrdiff_t>(which));
  const BulkCopy copy = *found;
  acquire_from(copy.barrier);
  hopper.copies.erase(found);
  std::memcpy(copy.target, copy.source, copy.bytes);
  copy_unseen(published_at(copy.target), copy.source, copy.bytes);
  release_to(copy.barrier);
  Barrier& barrier = barrier_at(copy.barrier);
  barrier.bytes -= copy.bytes;
  end_phase_if_complete(barrier);
  return true;
}

std::string end_hopper_block(int threads) {
  if (!hopper.copies.empty()) return "a block ends with bulk copies under way";
  for (int i = 0; i < threads; ++i) {
    const Lane& lane = hopper.lanes[i];
    if (!lane.open.empty() || !lane.groups.empty()) return "a thread ends with products that it never waited for";
    const int first = i / (WARPS_OF_GROUP * WARP) * WARPS_OF_GROUP * WARP;
    if (lane.issued != hopper.lanes[first].issued) return "warps of a warpgroup disagree about their products";
  }
  return "";
}

}  // namespace host_model
