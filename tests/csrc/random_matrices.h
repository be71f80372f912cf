// Random matrices in exactly sized heap buffers, for random_shapes.cpp.

#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "cpu/pack.h"
#include "cpu/sparse.h"

namespace torchcoinfer {

constexpr int BITS[] = {2, 3, 4, 5, 6, 8};
constexpr int64_t GROUP_SIZES[] = {0, 32, 64, 128};
constexpr Dtype DTYPES[] = {Dtype::float32, Dtype::float16, Dtype::bfloat16};
constexpr int64_t KEPT_PERCENT[] = {0, 3, 20, 50, 90, 100};
constexpr Isa ISAS[] = {Isa::scalar, Isa::neon, Isa::avx2, Isa::avx512, Isa::amx};
// largest |x| and scale; with the code's range and sqrt(K) they bound what a sum may be off by rounding
constexpr float X_TOP = 4, SCALE_TOP = 1;

inline std::mt19937 generator;

inline int64_t below(int64_t count) {
  return static_cast<int64_t>(generator() % static_cast<uint64_t>(count));
}
inline int64_t between(int64_t least, int64_t most) {
  return least + below(most - least + 1);
}
inline bool coin() {
  return below(2) != 0;
}
template <typename T, size_t size>
T any(const T (&values)[size]) {
  return values[below(size)];
}
// Mostly small and odd, now and then enough rows for every way of cutting a call into tasks.
inline int64_t any_rows() {
  const int64_t kind = below(20);
  return kind == 0 ? 0 : kind < 12 ? between(1, 9) : kind < 19 ? between(10, 40) : between(41, 130);
}

// `bytes` at the end of an exactly sized allocation; `lead` bytes before them make the start misaligned.
class Exact {
 public:
  explicit Exact(int64_t bytes, int64_t lead = 0)
      : data_(std::make_unique<char[]>(static_cast<size_t>(bytes + lead))), lead_(lead) {}
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get() + lead_);
  }

 private:
  std::unique_ptr<char[]> data_;
  int64_t lead_;
};

inline Exact random_floats(int64_t count, Dtype dtype, float low, float top) {
  Exact values(count * dtype_bytes(dtype), coin() ? dtype_bytes(dtype) : 0);
  std::uniform_real_distribution<float> law(low, top);
  for (int64_t i = 0; i < count; ++i) store_float(law(generator), values.as<char>(), dtype, i);
  return values;
}
inline Exact random_codes(int64_t count, int bits) {
  Exact codes(count);
  for (int64_t i = 0; i < count; ++i) codes.as<uint8_t>()[i] = static_cast<uint8_t>(below(1 << bits));
  return codes;
}

// Scales, and zero points that every code can be; places beyond N hold anything.
struct Groups {
  Dtype dtype = any(DTYPES);
  bool symmetric = coin();
  Exact scales, zeros;

  Groups(int bits, int64_t group_size, int64_t N, int64_t K)
      : scales(random_floats(ceil_div(N, BLOCK_N) * group_count(K, group_size) * BLOCK_N, dtype, 0.5f, SCALE_TOP)),
        zeros(random_codes(ceil_div(N, BLOCK_N) * group_count(K, group_size) * BLOCK_N, bits)) {}
  const uint8_t* zeros_or_none() const {
    return symmetric ? nullptr : zeros.as<uint8_t>();
  }
};

struct Dense {
  int bits = any(BITS);
  int64_t group_size = any(GROUP_SIZES);
  Groups groups;
  Exact codes, packed;
  QuantMatrix matrix;

  Dense(int64_t N, int64_t K)
      : groups(bits, group_size, N, K),
        codes(random_codes(N * K, bits)),
        packed(ceil_div(N, BLOCK_N) * ceil_div(K, TILE_K) * tile_bytes(bits), below(2)) {
    pack_codes(codes.as<uint8_t>(), bits, N, K, packed.as<uint8_t>(), 0, ceil_div(N, BLOCK_N));
    matrix = {packed.as<uint8_t>(), groups.scales.as<char>(), groups.zeros_or_none(), groups.dtype, bits, group_size,
              N,                    K};
  }
};

struct Sparse {
  bool paired = coin();
  int bits = coin() ? any(BITS) : 0;
  int64_t group_size = any(GROUP_SIZES);
  Dtype value_dtype = any(DTYPES);
  Groups groups;
  Exact index, masks, offsets, values;
  SparseMatrix matrix{};

  Sparse(int64_t N, int64_t K)
      : groups(bits ? bits : 2, group_size, N, K),
        index(ceil_div(N, BLOCK_N) * ceil_div(K, TILE_K) * INDEX_BYTES),
        masks(ceil_div(N, BLOCK_N) * ceil_div(K, TILE_K) * TILE_GROUPS * 8),
        offsets((ceil_div(N, BLOCK_N) + 1) * 4),
        values(0) {
    const int64_t blocks = ceil_div(N, BLOCK_N), value_bytes = bits ? 1 : dtype_bytes(value_dtype);
    const Exact dense = bits ? random_codes(N * K, bits) : random_floats(N * K, value_dtype, -1, 1);
    const Exact kept(N * K);
    const int64_t percent = any(KEPT_PERCENT);
    for (int64_t i = 0; i < N * K; ++i) kept.as<uint8_t>()[i] = paired ? i % K % 4 < 2 : below(100) < percent;
    const int64_t chunk = bits ? chunk_bytes(bits) : CHUNK * value_bytes;
    int64_t chunks = blocks * ceil_div(K, TILE_K) * TILE_CHUNKS;
    if (!paired) chunks = count_chunks(kept, N, K);
    values = Exact(chunks * chunk);
    if (paired) {
      sparse24_pack_blocks(dense.as<char>(), value_bytes, kept.as<uint8_t>(), bits, N, K, 0, blocks,
                           index.as<uint8_t>(), values.as<char>());
    } else {
      bitmap_pack_blocks(dense.as<char>(), value_bytes, bits, N, K, masks.as<uint64_t>(), offsets.as<int32_t>(), 0,
                         blocks, values.as<char>());
    }
    matrix.paired = paired, matrix.values = values.as<char>(), matrix.chunks = chunks, matrix.bits = bits;
    matrix.index = paired ? index.as<uint8_t>() : nullptr;
    matrix.masks = paired ? nullptr : masks.as<uint64_t>(), matrix.offsets = paired ? nullptr : offsets.as<int32_t>();
    matrix.value_dtype = bits ? Dtype::float32 : value_dtype, matrix.N = N, matrix.K = K;
    matrix.scales = bits ? groups.scales.as<char>() : nullptr, matrix.scale_dtype = groups.dtype;
    matrix.zeros = bits ? groups.zeros_or_none() : nullptr, matrix.group_size = bits ? group_size : 0;
  }

 private:
  int64_t count_chunks(const Exact& kept, int64_t N, int64_t K) {
    const int64_t blocks = ceil_div(N, BLOCK_N);
    std::vector<int64_t> counts(static_cast<size_t>(blocks));
    bitmap_masks(kept.as<uint8_t>(), N, K, 0, blocks, masks.as<uint64_t>(), counts.data());
    int32_t* starts = offsets.as<int32_t>();
    starts[0] = 0;
    for (int64_t block = 0; block < blocks; ++block)
      starts[block + 1] = starts[block] + static_cast<int32_t>(ceil_div(counts[static_cast<size_t>(block)], CHUNK));
    return starts[blocks];
  }
};

}  // namespace torchcoinfer
