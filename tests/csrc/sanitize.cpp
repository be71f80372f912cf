// Walks every dense kernel over odd shapes, formats and paths in exactly sized heap buffers: to be built with
// -fsanitize=address,undefined (tests/csrc/test_sanitize.py does), and for other machines, under qemu-user.
// Compares every path with the scalar one. Prints the number of cases, or the first that differs.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

#include "cpu/pack.h"
#include "cpu/quant_conv2d.h"
#include "cpu/quant_embedding.h"
#include "cpu/quant_linear.h"

using namespace torchcoinfer;

namespace {

std::mt19937 generator(1);

// Exactly sized, so that a read or write beyond the end is caught.
template <typename T>
std::unique_ptr<T[]> exact(int64_t count) {
  return std::make_unique<T[]>(static_cast<size_t>(count));
}

std::unique_ptr<char[]> random_floats(int64_t count, Dtype dtype) {
  auto values = exact<char>(count * dtype_bytes(dtype));
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < count; ++i) store_float(normal(generator), values.get(), dtype, i);
  return values;
}

struct Packed {
  std::unique_ptr<uint8_t[]> packed, zeros;
  std::unique_ptr<char[]> scales;
  QuantMatrix matrix;

  Packed(int bits, int64_t group_size, bool symmetric, int64_t N, int64_t K) {
    const int64_t blocks = ceil_div(N, BLOCK_N), tiles = ceil_div(K, TILE_K), groups = group_count(K, group_size);
    packed = exact<uint8_t>(blocks * tiles * tile_bytes(bits));
    scales = exact<char>(blocks * groups * BLOCK_N * 2);
    if (!symmetric) zeros = exact<uint8_t>(blocks * groups * BLOCK_N);
    const auto weight = random_floats(N * K, Dtype::float32);
    quantize_blocks(weight.get(), Dtype::float32, bits, group_size, N, K,
                    {packed.get(), scales.get(), zeros.get(), Dtype::float16}, 0, blocks);
    matrix = {packed.get(), scales.get(), zeros.get(), Dtype::float16, bits, group_size, N, K};
  }
};

const ParallelFor IN_THREES = [](int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  for (int64_t i = 0; i < count; i += 3) body(i, std::min(count, i + 3));
};

// Largest difference relative to the largest value.
float difference(const char* a, const char* b, int64_t count, Dtype dtype) {
  float worst = 0, largest = 1e-3f;
  for (int64_t i = 0; i < count; ++i) {
    worst = std::max(worst, std::fabs(load_float(a, dtype, i) - load_float(b, dtype, i)));
    largest = std::max(largest, std::fabs(load_float(b, dtype, i)));
  }
  return worst / largest;
}

constexpr Dtype DTYPES[] = {Dtype::float32, Dtype::float16, Dtype::bfloat16};
constexpr int BITS[] = {2, 3, 4, 5, 6, 8};
constexpr Isa ISAS[] = {Isa::scalar, Isa::neon, Isa::avx2, Isa::avx512, Isa::amx};
int cases = 0, wrong = 0;

void judge(const char* what, Isa isa, int bits, int64_t group_size, Dtype dtype, float error) {
  ++cases;
  if (error <= (dtype == Dtype::float32 ? 1e-5f : 2e-2f)) return;
  ++wrong;
  std::printf("%s %s bits %d group %d dtype %d: %g\n", what, isa_name(isa), bits, static_cast<int>(group_size),
              static_cast<int>(dtype), error);
}

void linear(int bits, int64_t group_size, bool symmetric, Dtype dtype, int activation_bits) {
  for (int64_t M : {1, 3, 4, 5, 13, 34}) {
    const int64_t N = 37, K = M % 2 ? 75 : 160;
    const Packed weight(bits, group_size, symmetric, N, K);
    const auto x = random_floats(M * K, dtype), bias = random_floats(N, Dtype::float32);
    std::unique_ptr<char[]> truth;
    for (Isa isa : ISAS) {
      if (!isa_available(isa)) continue;
      auto y = exact<char>(M * N * dtype_bytes(dtype));
      const float* bias_values = reinterpret_cast<const float*>(bias.get());
      run_linear({weight.matrix, {x.get(), dtype, K, K}, M, activation_bits, {y.get(), dtype, N, 1, 0, N, bias_values},
                  isa},
                 IN_THREES);
      if (isa == Isa::scalar) truth = std::move(y);
      else judge("linear", isa, bits, group_size, dtype, difference(y.get(), truth.get(), M * N, dtype));
    }
  }
}

void convolution(int bits, int64_t group_size, Dtype dtype, int activation_bits, int64_t groups, int64_t stride) {
  ConvShape s{2, 6, 7, 9, 18, 0, 0, {3, 2}, {stride, 1}, {1, 2}, {1, 2}, groups};
  s.out_height = (s.height + 2 - 3) / stride + 1, s.out_width = s.width + 4 - 3 + 1;
  const Packed weight(bits, group_size, false, s.out_channels, s.columns());
  const int64_t size = s.batch * s.channels * s.height * s.width, out_size = s.batch * s.out_channels * s.pixels();
  const auto x = random_floats(size, dtype);
  std::unique_ptr<char[]> truth;
  for (Isa isa : ISAS) {
    if (!isa_available(isa)) continue;
    auto y = exact<char>(out_size * dtype_bytes(dtype));
    run_conv2d({weight.matrix, s, x.get(), {s.channels * s.height * s.width, s.height * s.width, s.width, 1}, dtype,
                activation_bits, y.get(), nullptr, isa},
               IN_THREES);
    if (isa == Isa::scalar) truth = std::move(y);
    else judge("convolution", isa, bits, group_size, dtype, difference(y.get(), truth.get(), out_size, dtype));
  }
}

void storage(int bits, int64_t group_size) {
  const int64_t N = 37, K = 75;
  const Packed weight(bits, group_size, false, N, K);
  const auto codes = exact<uint8_t>(N * K);
  unpack_codes(weight.packed.get(), bits, N, K, codes.get(), 0, 3);
  const int64_t bytes = 3 * 3 * tile_bytes(bits);
  const auto again = exact<uint8_t>(bytes);
  pack_codes(codes.get(), bits, N, K, again.get(), 0, 3);
  judge("pack", Isa::scalar, bits, group_size, Dtype::float32,
        static_cast<float>(std::memcmp(again.get(), weight.packed.get(), bytes) != 0));
  const auto dense = exact<char>(N * K * 4), row = exact<char>(K * 4);
  dequantize_blocks(weight.matrix, dense.get(), Dtype::float32, 0, 3);
  for (int64_t index : {0, 17, 36}) {
    embed_rows(weight.matrix, &index, row.get(), Dtype::float32, 0, 1);
    judge("embedding", Isa::scalar, bits, group_size, Dtype::float32,
          difference(row.get(), dense.get() + index * K * 4, K, Dtype::float32));
  }
}

}  // namespace

int main() {
  for (int bits : BITS)
    for (int64_t group_size : {0, 32, 64, 128}) {
      storage(bits, group_size);
      for (Dtype dtype : DTYPES)
        for (int activation_bits : {0, 8}) {
          linear(bits, group_size, bits % 2 == 0, dtype, activation_bits);
          convolution(bits, group_size, dtype, activation_bits, bits % 2 ? 6 : 2, group_size == 32 ? 2 : 1);
          convolution(bits, group_size, dtype, activation_bits, 1, 1);
        }
    }
  std::printf("%d cases, %d wrong\n", cases, wrong);
  return wrong != 0;
}
