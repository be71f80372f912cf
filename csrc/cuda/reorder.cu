// Canonical order <-> device order, in place: a thread block permutes a quad of tiles (layout_device.h), or one tile of
// the rest, through shared memory.

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;
constexpr int MOST_BYTES = QUAD * 256 * 4;  // float32 survivors of a quad
constexpr int TILE_CODES = BLOCK_N * TILE_K;
constexpr int TILE_SURVIVORS = TILE_CHUNKS * CHUNK;

struct Order {
  Buffer kind;
  int bits;
  int element_bytes;
  bool to_device;

  __device__ int items() const {  // of a tile
    return kind == Buffer::codes ? TILE_CODES : kind == Buffer::index ? BLOCK_N * TILE_GROUPS : TILE_SURVIVORS;
  }
};

// One code from where it lies to where it goes.
__device__ void move_code(const Order& order, const uint8_t* from, uint8_t* to, int count, int u, int item) {
  const int n = item / TILE_K, k = item % TILE_K;
  for (int index = 0; index < plane_count(order.bits); ++index) {
    const Plane p = plane(order.bits, index);
    const Bit there = device_bit(p, order.bits, count, u, n, k);
    const Field field = field_of(p.bits, n, k);
    const Bit here{u * tile_bytes(order.bits) + p.offset + field.byte, field.shift};
    const Bit& source = order.to_device ? here : there;
    const Bit& target = order.to_device ? there : here;
    or_byte(to, target.byte, (from[source.byte] >> source.shift & ((1 << p.bits) - 1)) << target.shift);
  }
}

__device__ void move_survivor(const Order& order, const uint8_t* from, uint8_t* to, int count, int u, int item) {
  const int group = item / PAIRED_SURVIVORS, n = item % PAIRED_SURVIVORS / 2, slot = item % 2;
  if (order.bits == 0) {
    const int here = u * TILE_SURVIVORS + item, there = u * TILE_SURVIVORS + device_survivor_element(n, group, slot);
    for (int i = 0; i < order.element_bytes; ++i)
      to[(order.to_device ? there : here) * order.element_bytes + i] =
          from[(order.to_device ? here : there) * order.element_bytes + i];
    return;
  }
  for (int index = 0; index < plane_count(order.bits); ++index) {
    const Plane p = plane(order.bits, index);
    const int bytes = 8 * p.bits, i = item % CHUNK;
    const int64_t chunk = (u * TILE_CHUNKS + item / CHUNK) * chunk_bytes(order.bits);
    const Bit there = device_survivor_bit(p, order.bits, count, u, n, group, slot);
    const Bit here{chunk + 8 * p.shift + i % bytes, p.bits * (i / bytes)};
    const Bit& source = order.to_device ? here : there;
    const Bit& target = order.to_device ? there : here;
    or_byte(to, target.byte, (from[source.byte] >> source.shift & ((1 << p.bits) - 1)) << target.shift);
  }
}

__device__ void move_index(const Order& order, const uint8_t* from, uint8_t* to, int count, int u, int item) {
  const int group = item / BLOCK_N, n = item % BLOCK_N;
  const Bit here{u * INDEX_BYTES + 8 * group + n / 2, 4 * (n % 2)};
  const Bit there = device_index_bit(count, u, n, group);
  const Bit& source = order.to_device ? here : there;
  const Bit& target = order.to_device ? there : here;
  or_byte(to, target.byte, (from[source.byte] >> source.shift & 15) << target.shift);
}

__global__ void permute(uint8_t* buffer, Order order, int tile_size, int64_t tiles, int64_t units, int64_t all) {
  __shared__ __align__(16) uint8_t from[MOST_BYTES];
  __shared__ __align__(16) uint8_t to[MOST_BYTES];
  const int64_t quads = tiles / QUAD;
  for (int64_t unit = blockIdx.x; unit < all; unit += gridDim.x) {
    const int64_t block = unit / units, i = unit % units;
    const int count = i < quads ? QUAD : 1;
    const int64_t tile = i < quads ? i * QUAD : quads * QUAD + i - quads;
    uint8_t* place = buffer + (block * tiles + tile) * tile_size;
    for (int byte = threadIdx.x; byte < count * tile_size; byte += THREADS) {
      from[byte] = place[byte];
      to[byte] = 0;
    }
    __syncthreads();
    for (int item = threadIdx.x; item < count * order.items(); item += THREADS) {
      const int u = item / order.items(), of_tile = item % order.items();
      if (order.kind == Buffer::codes)
        move_code(order, from, to, count, u, of_tile);
      else if (order.kind == Buffer::survivors)
        move_survivor(order, from, to, count, u, of_tile);
      else
        move_index(order, from, to, count, u, of_tile);
    }
    __syncthreads();
    for (int byte = threadIdx.x; byte < count * tile_size; byte += THREADS) place[byte] = to[byte];
    __syncthreads();  // both are written again
  }
}

}  // namespace

const char* reorder(uint8_t* buffer, Buffer kind, int bits, int64_t element_bytes, int64_t blocks, int64_t tiles,
                    bool to_device, void* stream) {
  const int64_t units = tiles / QUAD + tiles % QUAD, all = blocks * units;
  if (all == 0) return nullptr;
  const int64_t tile_size = kind == Buffer::codes   ? tile_bytes(bits)
                            : kind == Buffer::index ? INDEX_BYTES
                            : bits                  ? TILE_CHUNKS * chunk_bytes(bits)
                                                    : TILE_SURVIVORS * element_bytes;
  launch(permute, grid_size(all, MOST_BLOCKS), THREADS, 0, stream, buffer,
         Order{kind, bits, static_cast<int>(element_bytes), to_device}, static_cast<int>(tile_size), tiles, units, all);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
