// Random calls of every CPU kernel family in exactly sized heap buffers: to be built with -fsanitize=address,undefined
// (tests/csrc/test_sanitize.py does), so that one access out of bounds ends the program. Compares every path with
// the scalar one. Arguments: cases, first seed. Prints the number of cases, or those that differ.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/activation.h"
#include "cpu/pack.h"
#include "cpu/quant_conv2d.h"
#include "cpu/quant_embedding.h"
#include "cpu/quant_linear.h"
#include "cpu/sparse.h"

using namespace torchcoinfer;

namespace {

constexpr int BITS[] = {2, 3, 4, 5, 6, 8};
constexpr int64_t GROUP_SIZES[] = {0, 32, 64, 128};
constexpr Dtype DTYPES[] = {Dtype::float32, Dtype::float16, Dtype::bfloat16};
constexpr int64_t KEPT_PERCENT[] = {0, 3, 20, 50, 90, 100};
constexpr Isa ISAS[] = {Isa::scalar, Isa::neon, Isa::avx2, Isa::avx512, Isa::amx};
// largest |x| and scale; with the code's range and sqrt(K) they bound what a sum may be off by rounding
constexpr float X_TOP = 4, SCALE_TOP = 1;

std::mt19937 generator;

int64_t below(int64_t count) {
  return static_cast<int64_t>(generator() % static_cast<uint64_t>(count));
}
int64_t between(int64_t least, int64_t most) {
  return least + below(most - least + 1);
}
bool coin() {
  return below(2) != 0;
}
template <typename T, size_t size>
T any(const T (&values)[size]) {
  return values[below(size)];
}
// Mostly small and odd, now and then enough rows for every way of cutting a call into tasks.
int64_t any_rows() {
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

Exact random_floats(int64_t count, Dtype dtype, float low, float top) {
  Exact values(count * dtype_bytes(dtype), coin() ? dtype_bytes(dtype) : 0);
  std::uniform_real_distribution<float> law(low, top);
  for (int64_t i = 0; i < count; ++i) store_float(law(generator), values.as<char>(), dtype, i);
  return values;
}
Exact random_codes(int64_t count, int bits) {
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

const ParallelFor IN_PARTS = [](int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  for (int64_t i = 0; i < count; i += 3) body(i, std::min(count, i + 3));
};

int wrong = 0;

// Runs a call on every path into exactly sized results and compares them with the scalar path's.
void compare(const std::string& what, int64_t count, Dtype dtype, float largest,
             const std::function<void(Isa, char*)>& call) {
  std::vector<float> truth(static_cast<size_t>(count));
  const float unit = dtype == Dtype::float32 ? 1e-5f : dtype == Dtype::float16 ? 2e-3f : 1.6e-2f;
  for (Isa isa : ISAS) {
    if (!isa_available(isa)) continue;
    const Exact y(count * dtype_bytes(dtype));
    call(isa, y.as<char>());
    float worst = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float value = load_float(y.as<char>(), dtype, i);
      if (isa == Isa::scalar) truth[static_cast<size_t>(i)] = value;
      worst = std::max(worst, std::fabs(value - truth[static_cast<size_t>(i)]));
    }
    if (worst <= unit * largest) continue;
    ++wrong;
    std::printf("%s, %s, dtype %d: off by %g of %g\n", what.c_str(), isa_name(isa), static_cast<int>(dtype), worst,
                largest);
  }
}

float largest_sum(int bits, int64_t K) {
  return X_TOP * SCALE_TOP * static_cast<float>(1 << bits) * std::sqrt(static_cast<float>(K + 1));
}

std::string told(const char* what, int64_t M, int64_t N, int64_t K, int bits, int64_t group_size, int activation_bits) {
  char text[200];
  std::snprintf(text, sizeof text, "%s M %lld N %lld K %lld bits %d group %lld activations %d", what,
                static_cast<long long>(M), static_cast<long long>(N), static_cast<long long>(K), bits,
                static_cast<long long>(group_size), activation_bits);
  return text;
}

void linear() {
  const int64_t M = any_rows(), N = between(1, 70), K = between(1, 300), stride = K + (coin() ? below(9) : 0);
  const Dtype dtype = any(DTYPES);
  const int activation_bits = coin() ? 8 : 0;
  const Dense weight(N, K);
  const Exact x = random_floats(M ? (M - 1) * stride + K : 0, dtype, -X_TOP, X_TOP);
  const Exact bias = random_floats(N, Dtype::float32, -1, 1);
  const bool biased = coin();
  compare(told("linear", M, N, K, weight.bits, weight.group_size, activation_bits), M * N, dtype,
          largest_sum(weight.bits, K), [&](Isa isa, char* y) {
            LinearCall call{};
            call.weight = weight.matrix, call.rows = M, call.activation_bits = activation_bits, call.isa = isa;
            call.x = {x.as<char>(), dtype, stride, K};
            call.out = {y, dtype, N, 1, 0, N, biased ? bias.as<float>() : nullptr};
            run_linear(call, IN_PARTS);
          });
}

void convolution() {
  ConvShape s{};
  const bool depthwise = below(3) == 0;
  s.groups = depthwise ? between(1, 20) : between(1, 3);
  s.batch = between(1, 2), s.channels = s.groups * (depthwise ? 1 : between(1, 9));
  s.out_channels = s.groups * (depthwise ? between(1, 2) : between(1, 20));
  for (int i = 0; i < 2; ++i) {
    s.kernel[i] = between(1, 4), s.stride[i] = between(1, 3), s.padding[i] = below(3), s.dilation[i] = between(1, 2);
  }
  const int64_t reach[] = {(s.kernel[0] - 1) * s.dilation[0] + 1, (s.kernel[1] - 1) * s.dilation[1] + 1};
  s.height = between(std::max<int64_t>(1, reach[0] - 2 * s.padding[0]), 12);
  s.width = between(std::max<int64_t>(1, reach[1] - 2 * s.padding[1]), 24);
  s.out_height = (s.height + 2 * s.padding[0] - reach[0]) / s.stride[0] + 1;
  s.out_width = (s.width + 2 * s.padding[1] - reach[1]) / s.stride[1] + 1;
  const Dtype dtype = any(DTYPES);
  const int activation_bits = coin() ? 8 : 0;
  const Dense weight(s.out_channels, s.columns());
  const Exact x = random_floats(s.batch * s.channels * s.height * s.width, dtype, -X_TOP, X_TOP);
  const bool last = coin();  // channels last
  const int64_t image = s.channels * s.height * s.width;
  compare(told("convolution", s.pixels(), s.out_channels, s.columns(), weight.bits, weight.group_size, activation_bits),
          s.batch * s.out_channels * s.pixels(), dtype, largest_sum(weight.bits, s.columns()), [&](Isa isa, char* y) {
            ConvCall call{};
            call.weight = weight.matrix, call.shape = s, call.x = x.as<char>(), call.dtype = dtype;
            call.activation_bits = activation_bits, call.y = y, call.isa = isa;
            const int64_t strides[2][4] = {{image, s.height * s.width, s.width, 1},
                                           {image, 1, s.width * s.channels, s.channels}};
            std::copy_n(strides[last], 4, call.x_strides);
            run_conv2d(call, IN_PARTS);
          });
}

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

void sparse() {
  const int64_t M = any_rows(), N = between(1, 70), K = between(1, 300), stride = K + (coin() ? below(9) : 0);
  const Dtype dtype = any(DTYPES);
  const Sparse weight(N, K);
  const int activation_bits = weight.bits && coin() ? 8 : 0;
  const Exact x = random_floats(M ? (M - 1) * stride + K : 0, dtype, -X_TOP, X_TOP);
  const Exact bias = random_floats(N, Dtype::float32, -1, 1);
  const bool biased = coin();
  const char* what = weight.paired ? "2:4" : "bitmap";
  compare(told(what, M, N, K, weight.bits, weight.matrix.group_size, activation_bits), M * N, dtype,
          largest_sum(weight.bits, K), [&](Isa isa, char* y) {
            SparseCall call{};
            call.weight = weight.matrix, call.rows = M, call.activation_bits = activation_bits, call.isa = isa;
            call.x = {x.as<char>(), dtype, stride, K};
            call.out = {y, dtype, N, 1, 0, N, biased ? bias.as<float>() : nullptr};
            if (!run_sparse_linear(call, IN_PARTS)) ++wrong;
          });
}

void storage() {
  const int64_t N = between(1, 70), K = between(1, 300), count = below(20);
  const Dense table(N, K);
  const Exact codes(N * K);
  unpack_codes(table.packed.as<uint8_t>(), table.bits, N, K, codes.as<uint8_t>(), 0, ceil_div(N, BLOCK_N));
  if (std::memcmp(codes.as<char>(), table.codes.as<char>(), static_cast<size_t>(N * K))) {
    ++wrong;
    std::printf("codes do not survive, N %lld K %lld\n", static_cast<long long>(N), static_cast<long long>(K));
  }
  const Dtype dtype = any(DTYPES);
  const Exact dense(N * K * dtype_bytes(dtype)), rows(count * K * dtype_bytes(dtype)), indices(count * 8);
  for (int64_t i = 0; i < count; ++i) indices.as<int64_t>()[i] = below(N);
  dequantize_blocks(table.matrix, dense.as<char>(), dtype, 0, ceil_div(N, BLOCK_N));
  embed_rows(table.matrix, indices.as<int64_t>(), rows.as<char>(), dtype, 0, count);
  const int64_t row_bytes = K * dtype_bytes(dtype);
  for (int64_t i = 0; i < count; ++i)
    wrong += std::memcmp(rows.as<char>() + i * row_bytes, dense.as<char>() + indices.as<int64_t>()[i] * row_bytes,
                         static_cast<size_t>(row_bytes)) != 0;
}

void codec() {
  CodecShape shape{};
  shape.rows = below(6), shape.channels = between(1, 20), shape.n = shape.channels * between(1, 12);
  shape.bits = any(BITS), shape.by_token = coin();
  const Dtype dtype = any(DTYPES);
  const Exact x = random_floats(shape.rows * shape.n, dtype, -X_TOP, X_TOP);
  const int64_t ranges = shape.by_token ? shape.rows : shape.channels;
  compare(told("codec", shape.rows, shape.n, shape.channels, shape.bits, 0, 0), shape.rows * shape.n, dtype,
          X_TOP, [&](Isa isa, char* y) {
            const Exact scale(ranges * 4), low(ranges * 4), codes(shape.rows * shape.row_bytes());
            activation_range(shape, x.as<char>(), dtype, isa, 0, ranges, scale.as<float>(), low.as<float>());
            encode_rows(shape, x.as<char>(), dtype, scale.as<float>(), low.as<float>(), isa, 0, shape.rows,
                        codes.as<uint8_t>());
            decode_rows(shape, codes.as<uint8_t>(), scale.as<float>(), low.as<float>(), dtype, isa, 0, shape.rows, y);
          });
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t cases = count > 1 ? std::atoll(arguments[1]) : 1000, seed = count > 2 ? std::atoll(arguments[2]) : 0;
  const std::function<void()> kinds[] = {linear, linear, linear, convolution, convolution, sparse, sparse, storage, codec};
  for (int64_t i = 0; i < cases; ++i) {
    generator.seed(static_cast<uint32_t>(seed + i));  // each case by itself again
    const int before = wrong;
    any(kinds)();
    if (wrong != before) std::printf("seed %lld\n", static_cast<long long>(seed + i));
  }
  std::printf("%lld cases, %d wrong\n", static_cast<long long>(cases), wrong);
  return wrong != 0;
}
