// Packing and unpacking of the sparse formats (layout_sparse.h).

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;
constexpr int TILE_SURVIVORS = TILE_CHUNKS * CHUNK;

// W [N, K], one flag or value an element.
struct Dense {
  const uint8_t* values;
  int64_t value_bytes;
  const uint8_t* kept;
  int64_t N, K;

  __device__ bool keeps(int64_t n, int64_t k) const {
    return n < N && k < K && kept[n * K + k];
  }
};

__device__ void put_value(const uint8_t* from, uint8_t* survivors, int64_t survivor, int64_t value_bytes) {
  for (int64_t i = 0; i < value_bytes; ++i) survivors[survivor * value_bytes + i] = from[i];
}

// A thread takes four columns of a row.
__global__ void pack_pairs(Dense w, int bits, uint8_t* index, uint8_t* out, int32_t* flag) {
  const int64_t tiles = ceil_div(w.K, TILE_K), all = ceil_div(w.N, BLOCK_N) * tiles * TILE_GROUPS * BLOCK_N;
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < all; i += step) {
    const int n = static_cast<int>(i % BLOCK_N), g = static_cast<int>(i / BLOCK_N % TILE_GROUPS);
    const int64_t tile = i / BLOCK_N / TILE_GROUPS;
    const int64_t row = tile / tiles * BLOCK_N + n, column = tile % tiles * TILE_K + g * GROUP_K;
    int mask = 0;
    for (int k = 0; k < GROUP_K; ++k) mask |= w.keeps(row, column + k) << k;
    if (__popc(mask) > 2) {
      atomicOr(flag, 1);
      continue;
    }
    const int nibble = mask_nibble(mask);
    or_byte(index, tile * INDEX_BYTES + 8 * g + n / 2, nibble << 4 * (n % 2));
    for (int slot = 0; slot < 2; ++slot) {
      const int k = slot ? nibble >> 2 : nibble & 3;
      const int64_t survivor = g * PAIRED_SURVIVORS + 2 * n + slot;
      if (row >= w.N || column + k >= w.K) continue;
      const uint8_t* value = w.values + (row * w.K + column + k) * w.value_bytes;
      if (bits) {
        if (mask >> k & 1 && *value >> bits) atomicOr(flag, 1);
        or_chunk_code(out + (tile * TILE_CHUNKS + survivor / CHUNK) * chunk_bytes(bits), bits,
                      static_cast<int>(survivor % CHUNK), *value);
      } else if (mask >> k & 1) {
        put_value(value, out, tile * TILE_SURVIVORS + survivor, w.value_bytes);
      }
    }
  }
}

__global__ void make_masks(Dense w, uint64_t* masks, unsigned long long* counts) {
  const int64_t tiles = ceil_div(w.K, TILE_K), words = ceil_div(w.N, BLOCK_N) * tiles * TILE_GROUPS;
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < words; i += step) {
    const int64_t block = i / TILE_GROUPS / tiles, column = i % (TILE_GROUPS * tiles) * GROUP_K;
    uint64_t mask = 0;
    for (int at = 0; at < GROUP_PLACES; ++at)
      if (w.keeps(block * BLOCK_N + at / GROUP_K, column + at % GROUP_K)) mask |= uint64_t{1} << at;
    masks[i] = mask;
    atomicAdd(counts + block, static_cast<unsigned long long>(__popcll(mask)));
  }
}

// A thread block takes an n-block, 64 threads a word; every thread counts the survivors before its own.
constexpr int WORDS = THREADS / GROUP_PLACES;

// Where the survivor of the calling thread's place lies in its block's stream; -1: the place is not kept. `seen`: the
// survivors before this step, moved on by it.
__device__ int64_t stream_place(const uint64_t* masks, int64_t word, int64_t words, int64_t* seen) {
  const int own = threadIdx.x / GROUP_PLACES, at = threadIdx.x % GROUP_PLACES;
  int64_t place = -1, before = *seen;
  for (int i = 0; i < WORDS; ++i) {
    const uint64_t mask = word + i < words ? masks[word + i] : 0;
    if (i == own && mask >> at & 1) place = before + __popcll(mask & ((uint64_t{1} << at) - 1));
    before += __popcll(mask);
  }
  *seen = before;
  return place;
}

__global__ void pack_stream(Dense w, int bits, const uint64_t* masks, const int32_t* offsets, uint8_t* out,
                            int32_t* flag) {
  const int64_t words = ceil_div(w.K, TILE_K) * TILE_GROUPS, block = blockIdx.x;
  const int at = threadIdx.x % GROUP_PLACES;
  int64_t seen = 0;
  for (int64_t word = 0; word < words; word += WORDS) {
    const int64_t place = stream_place(masks + block * words, word, words, &seen);
    if (place < 0) continue;
    const int64_t row = block * BLOCK_N + at / GROUP_K;
    const int64_t column = (word + threadIdx.x / GROUP_PLACES) * GROUP_K + at % GROUP_K;
    const uint8_t* value = w.values + (row * w.K + column) * w.value_bytes;
    const int64_t survivor = static_cast<int64_t>(offsets[block]) * CHUNK + place;
    if (!bits) {
      put_value(value, out, survivor, w.value_bytes);
      continue;
    }
    if (*value >> bits) atomicOr(flag, 1);
    or_chunk_code(out + survivor / CHUNK * chunk_bytes(bits), bits, static_cast<int>(survivor % CHUNK), *value);
  }
}

struct Unpacked {
  uint8_t* dense;
  int64_t value_bytes;
  uint8_t* kept;
};

__device__ void take_survivor(const SparseMatrix& w, const Unpacked& out, int64_t row, int64_t column,
                              int64_t survivor) {
  if (row >= w.N || column >= w.K) return;
  const auto* values = static_cast<const uint8_t*>(w.values);
  const int64_t element = row * w.K + column;
  out.kept[element] = 1;
  if (w.bits)
    out.dense[element] = static_cast<uint8_t>(
        chunk_code(values + survivor / CHUNK * chunk_bytes(w.bits), w.bits, static_cast<int>(survivor % CHUNK)));
  else
    put_value(values + survivor * out.value_bytes, out.dense, element, out.value_bytes);
}

__global__ void unpack_pairs(SparseMatrix w, Unpacked out) {
  const int64_t tiles = ceil_div(w.K, TILE_K), all = ceil_div(w.N, BLOCK_N) * tiles * TILE_SURVIVORS;
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < all; i += step) {
    const int64_t tile = i / TILE_SURVIVORS;
    const int g = static_cast<int>(i % TILE_SURVIVORS / PAIRED_SURVIVORS), n = static_cast<int>(i / 2 % BLOCK_N);
    const int nibble = w.index[tile * INDEX_BYTES + 8 * g + n / 2] >> 4 * (n % 2) & 15;
    const int k = i % 2 ? nibble >> 2 : nibble & 3;
    take_survivor(w, out, tile / tiles * BLOCK_N + n, tile % tiles * TILE_K + g * GROUP_K + k, i);
  }
}

__global__ void unpack_stream(SparseMatrix w, Unpacked out, int32_t* flag) {
  const int64_t words = ceil_div(w.K, TILE_K) * TILE_GROUPS, block = blockIdx.x;
  const int64_t first = static_cast<int64_t>(w.offsets[block]) * CHUNK;
  const int64_t last = static_cast<int64_t>(w.offsets[block + 1]) * CHUNK;
  const int at = threadIdx.x % GROUP_PLACES;
  const bool sound = first >= 0 && last <= w.chunks * CHUNK;
  int64_t seen = 0;
  for (int64_t word = 0; word < words; word += WORDS) {
    const int64_t place = stream_place(w.masks + block * words, word, words, &seen);
    if (place >= 0 && sound && first + place < last)
      take_survivor(w, out, block * BLOCK_N + at / GROUP_K,
                    (word + threadIdx.x / GROUP_PLACES) * GROUP_K + at % GROUP_K, first + place);
  }
  if (!sound || first + ceil_div(seen, CHUNK) * CHUNK != last) atomicOr(flag, 1);
}

}  // namespace

const char* sparse24_pack(const void* values, int64_t value_bytes, const uint8_t* kept, int bits, int64_t N, int64_t K,
                          uint8_t* index, void* out, int32_t* flag, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t tiles = ceil_div(N, BLOCK_N) * ceil_div(K, TILE_K);
  cudaMemsetAsync(flag, 0, sizeof *flag, queue);
  if (tiles == 0) return launch_error();
  cudaMemsetAsync(index, 0, tiles * INDEX_BYTES, queue);
  cudaMemsetAsync(out, 0, tiles * (bits ? TILE_CHUNKS * chunk_bytes(bits) : TILE_SURVIVORS * value_bytes), queue);
  const Dense dense{static_cast<const uint8_t*>(values), value_bytes, kept, N, K};
  launch(pack_pairs, grid_size(ceil_div(tiles * TILE_GROUPS * BLOCK_N, THREADS), MOST_BLOCKS), THREADS, 0, stream,
         dense, bits, index, static_cast<uint8_t*>(out), flag);
  return launch_error();
}

const char* bitmap_masks(const uint8_t* kept, int64_t N, int64_t K, uint64_t* masks, int64_t* counts, void* stream) {
  const int64_t blocks = ceil_div(N, BLOCK_N), words = blocks * ceil_div(K, TILE_K) * TILE_GROUPS;
  if (blocks) cudaMemsetAsync(counts, 0, blocks * sizeof *counts, static_cast<cudaStream_t>(stream));
  if (words == 0) return launch_error();
  launch(make_masks, grid_size(ceil_div(words, THREADS), MOST_BLOCKS), THREADS, 0, stream,
         Dense{nullptr, 0, kept, N, K}, masks, reinterpret_cast<unsigned long long*>(counts));
  return launch_error();
}

const char* bitmap_pack(const void* values, int64_t value_bytes, int bits, int64_t N, int64_t K, const uint64_t* masks,
                        const int32_t* offsets, int64_t chunks, void* out, int32_t* flag, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  cudaMemsetAsync(flag, 0, sizeof *flag, queue);
  if (chunks == 0) return launch_error();
  cudaMemsetAsync(out, 0, chunks * (bits ? chunk_bytes(bits) : CHUNK * value_bytes), queue);
  const Dense dense{static_cast<const uint8_t*>(values), value_bytes, nullptr, N, K};
  launch(pack_stream, static_cast<unsigned>(ceil_div(N, BLOCK_N)), THREADS, 0, stream, dense, bits, masks, offsets,
         static_cast<uint8_t*>(out), flag);
  return launch_error();
}

const char* sparse_unpack(const SparseMatrix& matrix, int64_t value_bytes, void* dense, uint8_t* kept, int32_t* flag,
                          void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t elements = matrix.N * matrix.K, blocks = ceil_div(matrix.N, BLOCK_N);
  cudaMemsetAsync(flag, 0, sizeof *flag, queue);
  if (elements) {
    cudaMemsetAsync(dense, 0, elements * value_bytes, queue);
    cudaMemsetAsync(kept, 0, elements, queue);
  }
  const Unpacked out{static_cast<uint8_t*>(dense), value_bytes, kept};
  if (matrix.paired && elements)
    launch(unpack_pairs,
           grid_size(ceil_div(blocks * ceil_div(matrix.K, TILE_K) * TILE_SURVIVORS, THREADS), MOST_BLOCKS), THREADS, 0,
           stream, matrix, out);
  else if (!matrix.paired && blocks)
    launch(unpack_stream, static_cast<unsigned>(blocks), THREADS, 0, stream, matrix, out, flag);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
