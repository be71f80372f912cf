// The scheduler: one block at a time, each thread a fiber that runs until it waits.
//
// With HOST_MODEL_RACES the fibers are ThreadSanitizer's too, so that it reports accesses to shared or global memory that
// no barrier orders. This file itself is then compiled without the sanitizer: its own state is nobody's race.

#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "hopper_model.h"

// Where __shared__ variables lie; null where no kernel has any.
extern "C" {
extern unsigned char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}

#if defined(HOST_MODEL_RACES)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

dim3 blockIdx, blockDim, gridDim;

namespace host_model {
namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr int MOST_THREADS = 1024;
constexpr size_t MOST_DYNAMIC_BYTES = 227 << 10;
constexpr size_t GUARD_BYTES = 256;  // after dynamic shared memory, must keep their poison

enum class State { runnable, at_block, at_warp, at_phase, done };

struct Copy {
  void* target;
  std::vector<unsigned char> bytes;
  const void* source;
  int read_bytes;
};

using Payload = std::array<uint64_t, PAYLOAD_BYTES / 8>;
using Payloads = std::array<Payload, WARP>;

struct Fiber {
  ucontext_t context;
  uint3 index;
  int lane, warp;
  State state;
  Meeting meeting;
  uint32_t mask;
  Payload payload;
  std::shared_ptr<Payloads> received;  // of the last collective, all its lanes have the same
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
  const uint64_t* barrier;  // whose phase of this parity is awaited
  uint32_t parity;
  void* tsan;
};

struct Options {
  int poison = 0xff;
  // 0: ascending, every thread a step in its turn. 1: descending, each warp as far as it goes alone. Others: seeds of
  // random orders, each warp some steps at a time.
  int order = 0;
};

// The model is one machine: what a GPU keeps in its registers stands here, guarded by `busy`.
struct Machine {
  std::mutex busy;
  Options options;
  std::vector<Fiber> fibers;
  unsigned char* stacks = nullptr;
  ucontext_t scheduler;
  void* scheduler_tsan = nullptr;
  Fiber* running = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::string error;
  int sum = 0, sum_of_last = 0;
  uint64_t random = 0;  // state of random orders
  unsigned char dynamic[MOST_DYNAMIC_BYTES + GUARD_BYTES] __attribute__((aligned(1024)));
  size_t dynamic_bytes = 0;
  char sync_block, sync_warp[MOST_THREADS / WARP];  // addresses for the race detector
};

Machine machine;

void enter(Fiber* fiber) {
  machine.running = fiber;
#if defined(HOST_MODEL_RACES)
  __tsan_switch_to_fiber(fiber->tsan, 1);
#endif
  swapcontext(&machine.scheduler, &fiber->context);
}

void leave() {
  Fiber* fiber = machine.running;
#if defined(HOST_MODEL_RACES)
  __tsan_switch_to_fiber(machine.scheduler_tsan, 1);
#endif
  swapcontext(&fiber->context, &machine.scheduler);
}

void body() {
  Fiber* fiber = machine.running;
  try {
    (*machine.kernel)();
    if (!fiber->open.empty()) throw std::runtime_error("a thread ends with copies that it never committed");
  } catch (const std::exception& error) {
    if (machine.error.empty()) machine.error = error.what();
  }
  release_to(&machine.sync_block);
  fiber->state = State::done;
  leave();
}

std::string place(const Fiber& fiber) {
  const auto text = [](unsigned x, unsigned y, unsigned z) {
    return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
  };
  return "thread " + text(fiber.index.x, fiber.index.y, fiber.index.z) + " of block " +
         text(blockIdx.x, blockIdx.y, blockIdx.z);
}

// Lets everybody go who waits for what is complete now. False: nobody.
bool wake_block() {
  int waiting = 0, live = 0;
  for (const Fiber& fiber : machine.fibers) {
    live += fiber.state != State::done;
    waiting += fiber.state == State::at_block;
  }
  if (!waiting || waiting != live) return false;
  machine.sum_of_last = machine.sum;
  machine.sum = 0;
  for (Fiber& fiber : machine.fibers)
    if (fiber.state == State::at_block) fiber.state = State::runnable;
  return true;
}

bool wake_warp(const Fiber& arrived) {
  Fiber* warp = &machine.fibers[arrived.warp * WARP];
  const int lanes = std::min<int>(WARP, static_cast<int>(machine.fibers.size()) - arrived.warp * WARP);
  for (int lane = 0; lane < WARP; ++lane) {
    if (!(arrived.mask >> lane & 1)) continue;
    const bool here = lane < lanes && warp[lane].state == State::at_warp && warp[lane].mask == arrived.mask &&
                      warp[lane].meeting == arrived.meeting;
    if (!here) return false;
  }
  const auto received = std::make_shared<Payloads>();
  for (int lane = 0; lane < lanes; ++lane) {
    if (!(arrived.mask >> lane & 1)) continue;
    warp[lane].state = State::runnable;
    warp[lane].received = received;
    for (size_t i = 0; i < warp[lane].payload.size(); ++i) (*received)[lane][i] = warp[lane].payload[i];
  }
  return true;
}

uint64_t random_number() {
  machine.random = machine.random * 6364136223846793005u + 1442695040888963407u;
  return machine.random >> 33;
}

std::vector<int> turns(int count) {
  std::vector<int> order(count);
  for (int i = 0; i < count; ++i) order[i] = machine.options.order == 1 ? count - 1 - i : i;
  if (machine.options.order < 2) return order;
  for (int i = count - 1; i > 0; --i) std::swap(order[i], order[random_number() % (i + 1)]);
  return order;
}

void poison_shared() {
  if (__start_cuda_shared)
    std::memset(__start_cuda_shared, machine.options.poison, __stop_cuda_shared - __start_cuda_shared);
  std::memset(machine.dynamic, machine.options.poison, machine.dynamic_bytes + GUARD_BYTES);
}

void prepare(int threads) {
  if (!machine.stacks) {
    void* stacks = mmap(nullptr, STACK_BYTES * MOST_THREADS, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) throw std::runtime_error("no memory for the threads' stacks");
    machine.stacks = static_cast<unsigned char*>(stacks);
  }
  machine.fibers.resize(threads);
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    const unsigned t = static_cast<unsigned>(i);
    fiber.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
    fiber.lane = i % WARP, fiber.warp = i / WARP;
    fiber.state = State::runnable;
    fiber.received.reset();
    fiber.open.clear(), fiber.groups.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = machine.stacks + i * STACK_BYTES;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, body, 0);
#if defined(HOST_MODEL_RACES)
    fiber.tsan = __tsan_create_fiber(0);
#endif
  }
}

void finish() {
  acquire_from(&machine.sync_block);
#if defined(HOST_MODEL_RACES)
  for (Fiber& fiber : machine.fibers) __tsan_destroy_fiber(fiber.tsan);
#endif
  for (size_t i = 0; i < GUARD_BYTES; ++i)
    if (machine.dynamic[machine.dynamic_bytes + i] != machine.options.poison && machine.error.empty())
      machine.error = "a kernel wrote beyond its dynamic shared memory";
}

// Lets a fiber run until it waits. False: it does so already.
bool run_fiber(Fiber& fiber) {
  if (fiber.state == State::at_phase && phase_ended(fiber.barrier, fiber.parity)) fiber.state = State::runnable;
  if (fiber.state != State::runnable) return false;
  enter(&fiber);
  if (machine.error.empty() && fiber.state == State::at_warp) wake_warp(fiber);
  return true;
}

constexpr int STEPS_AT_ONCE = 16;  // on average

bool run_warp(int first, int lanes) {
  bool moved = false;
  for (bool again = true; again && machine.error.empty();) {
    again = false;
    for (const int lane : turns(lanes))
      if (machine.error.empty() && run_fiber(machine.fibers[first + lane])) again = true;
    moved = moved || again;
    if (machine.options.order == 0 || (machine.options.order > 1 && random_number() % STEPS_AT_ONCE == 0)) break;
  }
  return moved;
}

void run_block(int threads) {
  poison_shared();
  prepare(threads);
  begin_hopper_block(threads);
  machine.random = static_cast<uint64_t>(machine.options.order) * 0x9e3779b97f4a7c15u + blockIdx.x;
  while (machine.error.empty()) {
    bool moved = false, live = false;
    for (const int warp : turns((threads + WARP - 1) / WARP))
      moved = run_warp(warp * WARP, std::min(WARP, threads - warp * WARP)) || moved;
    for (const Fiber& fiber : machine.fibers) live = live || fiber.state != State::done;
    if (!live || !machine.error.empty()) break;
    if (wake_block() || moved || land_bulk_copy()) continue;
    for (const Fiber& fiber : machine.fibers)
      if (fiber.state == State::at_block || fiber.state == State::at_warp) {
        machine.error = place(fiber) + " waits " +
                        (fiber.state == State::at_block ? "at a block barrier" : "at a warp collective") +
                        " that others of its group never reach";
        break;
      } else if (fiber.state == State::at_phase) {
        machine.error = place(fiber) + " waits for a phase that never ends";
        break;
      }
  }
  if (machine.error.empty()) machine.error = end_hopper_block(threads);
  finish();
}

}  // namespace

uint3 thread_index() {
  return machine.running->index;
}

int lane() {
  return machine.running->lane;
}

int thread_number() {
  return machine.running->warp * WARP + machine.running->lane;
}

void* dynamic_shared_memory() {
  return machine.dynamic;
}

size_t dynamic_shared_bytes() {
  return machine.dynamic_bytes;
}

int poison() {
  return machine.options.poison;
}

int order() {
  return machine.options.order;
}

void release_to([[maybe_unused]] void* address) {
#if defined(HOST_MODEL_RACES)
  __tsan_release(address);
#endif
}

void acquire_from([[maybe_unused]] void* address) {
#if defined(HOST_MODEL_RACES)
  __tsan_acquire(address);
#endif
}

void meet_phase(const uint64_t* barrier, uint32_t parity) {
  Fiber* fiber = machine.running;
  fiber->barrier = barrier, fiber->parity = parity;
  fiber->state = State::at_phase;
  leave();
}

int meet_block(int value) {
  machine.sum += value;
  release_to(&machine.sync_block);
  machine.running->state = State::at_block;
  leave();
  acquire_from(&machine.sync_block);
  return machine.sum_of_last;
}

Brought meet_warp(Meeting kind, uint32_t mask, const void* payload, int bytes) {
  Fiber* fiber = machine.running;
  if (!(mask >> fiber->lane & 1)) throw std::runtime_error(place(*fiber) + " is not in the mask of its collective");
  const auto* words = static_cast<const unsigned char*>(payload);
  for (int i = 0; i < bytes; ++i) reinterpret_cast<volatile unsigned char*>(fiber->payload.data())[i] = words[i];
  fiber->meeting = kind, fiber->mask = mask;
  if (kind == Meeting::sync) release_to(&machine.sync_warp[fiber->warp]);
  fiber->state = State::at_warp;
  leave();
  if (kind == Meeting::sync) acquire_from(&machine.sync_warp[fiber->warp]);
  return reinterpret_cast<Brought>(fiber->received->data());
}

void read_payload(void* target, const unsigned char* source, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(target)[i] = source[i];
}

void copy_later(void* target, const void* source, int bytes, int read_bytes) {
  machine.running->open.push_back({target, std::vector<unsigned char>(bytes), source, read_bytes});
  std::memset(target, machine.options.poison, bytes);
}

void commit_copies() {
  machine.running->groups.push_back(std::move(machine.running->open));
  machine.running->open.clear();
}

void wait_copies(int pending) {
  std::vector<std::vector<Copy>>& groups = machine.running->groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (Copy& copy : groups.front()) {
      std::memcpy(copy.bytes.data(), copy.source, copy.read_bytes);
      std::memcpy(copy.target, copy.bytes.data(), copy.bytes.size());
    }
    groups.erase(groups.begin());
  }
}

void run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(machine.busy);
  const int threads = static_cast<int>(block.x * block.y * block.z);
  if (threads == 0 || threads > MOST_THREADS || dynamic_bytes > MOST_DYNAMIC_BYTES || grid.y > 65535 ||
      grid.z > 65535 || grid.x == 0 || grid.y == 0 || grid.z == 0) {
    machine.error = "a launch that no GPU accepts";
    return;
  }
  gridDim = grid, blockDim = block;
  machine.kernel = &kernel;
  machine.dynamic_bytes = dynamic_bytes;
#if defined(HOST_MODEL_RACES)
  machine.scheduler_tsan = __tsan_get_current_fiber();
#endif
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks && machine.error.empty(); ++i) {
    const uint64_t b = machine.options.order == 1 ? blocks - 1 - i : i;
    blockIdx = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y));
    run_block(threads);
  }
}

}  // namespace host_model

cudaError_t cudaGetLastError() {
  return host_model::machine.error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

// Gives what went wrong, once.
const char* cudaGetErrorString(cudaError_t error) {
  thread_local std::string text;
  text = error == cudaSuccess ? "no error" : host_model::machine.error;
  host_model::machine.error.clear();
  return text.c_str();
}

extern "C" __attribute__((visibility("default"))) void host_model_configure(int poison, int order) {
  host_model::machine.options.poison = poison & 255;
  host_model::machine.options.order = order;
}
