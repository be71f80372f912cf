// One table of linear calls on every path that the machine has (and under an emulator, the emulated one), against
// float64 sums of the decoded weights; with int8 activations and scales of a power of two, bit for bit.
// Prints the number of cases, or those that differ. tests/csrc/test_sanitize.py builds and runs it.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/pack.h"
#include "cpu/quant_linear.h"

using namespace torchcoinfer;

namespace {

struct Shape {
  int64_t N, K;
};
constexpr Shape SHAPES[] = {{37, 75}, {16, 128}, {50, 290}, {5, 31}, {33, 544}, {3, 1}};
constexpr int64_t ROWS[] = {1, 2, 3, 4, 5, 7, 13, 33, 50};  // of the first and last of 50 rows
constexpr int64_t MOST_ROWS = 50;
constexpr int BITS[] = {2, 3, 4, 5, 6, 8};
constexpr int64_t GROUP_SIZES[] = {0, 32, 64, 128};
constexpr Dtype DTYPES[] = {Dtype::float32, Dtype::float16, Dtype::bfloat16};
constexpr double FLOAT_ROUNDOFF = 0x1p-24;

std::mt19937 generator(1);

double roundoff(Dtype dtype) {
  return dtype == Dtype::float32 ? 0x1p-24 : dtype == Dtype::float16 ? 0x1p-11 : 0x1p-8;
}

const ParallelFor IN_THREES = [](int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  for (int64_t i = 0; i < count; i += 3) body(i, std::min(count, i + 3));
};

// Exactly sized, so that a sanitizer sees an access beyond the end.
template <typename T>
std::unique_ptr<T[]> exact(int64_t count) {
  return std::make_unique<T[]>(static_cast<size_t>(count));
}

struct Format {
  int bits;
  int64_t group_size;
  bool symmetric;
};

struct Weight {
  std::unique_ptr<uint8_t[]> codes, packed, zeros;
  std::unique_ptr<char[]> scales;
  QuantMatrix matrix;

  Weight(const Format& f, Shape shape, bool exact_scales) {
    const int64_t blocks = ceil_div(shape.N, BLOCK_N), count = blocks * group_count(shape.K, f.group_size) * BLOCK_N;
    codes = exact<uint8_t>(shape.N * shape.K);
    for (int64_t i = 0; i < shape.N * shape.K; ++i) codes[i] = static_cast<uint8_t>(generator() % (1u << f.bits));
    packed = exact<uint8_t>(blocks * ceil_div(shape.K, TILE_K) * tile_bytes(f.bits));
    pack_codes(codes.get(), f.bits, shape.N, shape.K, packed.get(), 0, blocks);
    const Dtype dtype = exact_scales ? Dtype::float16 : DTYPES[generator() % 3];
    scales = exact<char>(count * dtype_bytes(dtype));
    std::uniform_real_distribution<float> law(0.01f, 0.1f);
    for (int64_t i = 0; i < count; ++i) store_float(exact_scales ? 0.5f : law(generator), scales.get(), dtype, i);
    if (!f.symmetric) zeros = exact<uint8_t>(count);
    for (int64_t i = 0; i < count && zeros; ++i) zeros[i] = static_cast<uint8_t>(generator() % (1u << f.bits));
    matrix = {packed.get(), scales.get(), zeros.get(), dtype, f.bits, f.group_size, shape.N, shape.K};
  }
  int64_t place(int64_t n, int64_t k) const {
    const int64_t group = matrix.group_size ? k / matrix.group_size : 0;
    return (n / BLOCK_N * group_count(matrix.K, matrix.group_size) + group) * BLOCK_N + n % BLOCK_N;
  }
  double scale(int64_t n, int64_t k) const {
    return load_float(matrix.scales, matrix.scale_dtype, place(n, k));
  }
  int zero(int64_t n, int64_t k) const {
    return zeros ? zeros[place(n, k)] : implicit_zero(matrix.bits);
  }
  int code(int64_t n, int64_t k) const {
    return codes[n * matrix.K + k];
  }
};

// Results in float64, and how far float32 sums of terms that contain codes and zero points may be off.
struct Truth {
  std::vector<double> exact, allowed;
};

// Rows as the kernels see them: as they are, or rounded to int8 codes (`scales`: their steps).
std::vector<double> seen(const char* x, Dtype dtype, int64_t K, int activation_bits, std::vector<float>* scales) {
  std::vector<double> values;
  for (int64_t m = 0; m < MOST_ROWS; ++m) {
    float largest = 0;
    for (int64_t k = 0; k < K; ++k) largest = std::max(largest, std::fabs(load_float(x, dtype, m * K + k)));
    scales->push_back(largest / 127.f);
    for (int64_t k = 0; k < K; ++k) {
      const float value = load_float(x, dtype, m * K + k);
      values.push_back(activation_bits ? std::nearbyint(value * (127.f / largest)) : value);
    }
  }
  return values;
}

Truth truth(const Weight& w, const std::vector<double>& x, const float* bias, Dtype dtype, const float* scales) {
  Truth result;
  const int64_t K = w.matrix.K, N = w.matrix.N;
  const int center = implicit_zero(w.matrix.bits);
  for (int64_t m = 0; m < MOST_ROWS; ++m)
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0, terms = 0, largest = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double value = x[m * K + k] * (scales ? scales[m] : 1.0), scale = w.scale(n, k);
        const double weight = scale * (w.code(n, k) - w.zero(n, k));
        sum += value * weight;
        largest += std::fabs(value * weight);
        terms += std::fabs(value) * (2 * scale * std::abs(w.code(n, k) - center) + std::fabs(weight));
      }
      result.exact.push_back(sum + bias[n]);
      result.allowed.push_back((terms + std::fabs(bias[n])) * (K + 16) * FLOAT_ROUNDOFF +
                               (largest + std::fabs(bias[n])) * roundoff(dtype));
    }
  return result;
}

int cases = 0, wrong = 0;

std::unique_ptr<char[]> run(Isa isa, const Weight& w, const char* x, Dtype dtype, int64_t first, int64_t rows, int activation_bits,
         const float* bias, const std::function<bool(const char*, int64_t, int64_t)>& holds) {
  const int64_t N = w.matrix.N, K = w.matrix.K;
  auto y = exact<char>(rows * N * dtype_bytes(dtype));
  run_linear({w.matrix, {x + first * K * dtype_bytes(dtype), dtype, K, K}, rows, activation_bits,
              {y.get(), dtype, N, 1, 0, N, bias}, isa},
             IN_THREES);
  ++cases;
  for (int64_t i = 0; i < rows * N; ++i) {
    if (holds(y.get(), i, first * N + i)) continue;
    ++wrong;
    std::printf("%s M %d N %d K %d bits %d group %d %s dtype %d activations %d: place %d is %g\n", isa_name(isa),
                static_cast<int>(rows), static_cast<int>(N), static_cast<int>(K), w.matrix.bits,
                static_cast<int>(w.matrix.group_size), w.zeros ? "asymmetric" : "symmetric", static_cast<int>(dtype),
                activation_bits, static_cast<int>(i), static_cast<double>(load_float(y.get(), dtype, i)));
    break;
  }
  return y;
}

// Every path; those of AVX-512 and AMX, which multiply the same digits, must agree bit for bit.
void run_paths(const Weight& w, const char* x, Dtype dtype, int activation_bits, const float* bias,
               const std::function<bool(const char*, int64_t, int64_t)>& holds) {
  for (int64_t rows : ROWS) {
    std::unique_ptr<char[]> tiles;
    for (Isa isa : ISA_ORDER) {
      if (!isa_available(isa)) continue;
      auto y = run(isa, w, x, dtype, rows % 2 ? 0 : MOST_ROWS - rows, rows, activation_bits, bias, holds);
      if (isa == Isa::amx) tiles = std::move(y);
      if (isa != Isa::avx512 || !tiles) continue;
      if (std::memcmp(y.get(), tiles.get(), static_cast<size_t>(rows * w.matrix.N * dtype_bytes(dtype))) == 0) continue;
      ++wrong;
      std::printf("amx and avx512 differ: M %d bits %d\n", static_cast<int>(rows), w.matrix.bits);
    }
  }
}

std::unique_ptr<char[]> random_floats(int64_t count, Dtype dtype) {
  auto values = exact<char>(count * dtype_bytes(dtype));
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < count; ++i) store_float(normal(generator), values.get(), dtype, i);
  return values;
}

void approximately(const Format& f, Shape shape, Dtype dtype, int activation_bits) {
  const Weight w(f, shape, false);
  const auto x = random_floats(MOST_ROWS * shape.K, dtype), bias = random_floats(shape.N, Dtype::float32);
  const float* bias_values = reinterpret_cast<const float*>(bias.get());
  std::vector<float> scales;
  const std::vector<double> given = seen(x.get(), dtype, shape.K, activation_bits, &scales);
  const Truth expected = truth(w, given, bias_values, dtype, activation_bits ? scales.data() : nullptr);
  run_paths(w, x.get(), dtype, activation_bits, bias_values, [&](const char* y, int64_t i, int64_t at) {
    return std::fabs(load_float(y, dtype, i) - expected.exact[at]) <= expected.allowed[at];
  });
}

void exactly(const Format& f, Shape shape) {
  const Weight w(f, shape, true);
  const auto x = random_floats(MOST_ROWS * shape.K, Dtype::float32);
  std::vector<float> scales;
  const std::vector<double> codes = seen(x.get(), Dtype::float32, shape.K, 8, &scales);
  std::vector<float> expected;
  for (int64_t m = 0; m < MOST_ROWS; ++m)
    for (int64_t n = 0; n < shape.N; ++n) {
      int64_t sum = 0;
      for (int64_t k = 0; k < shape.K; ++k)
        sum += static_cast<int64_t>(codes[m * shape.K + k]) * (w.code(n, k) - w.zero(n, k));
      expected.push_back(static_cast<float>(sum) * 0.5f * scales[m]);
    }
  run_paths(w, x.get(), Dtype::float32, 8, nullptr, [&](const char* y, int64_t i, int64_t at) {
    return load_float(y, Dtype::float32, i) == expected[at];
  });
}

std::string machine() {
#if TORCHCOINFER_ARM
  constexpr const char* LEVELS[] = {"base", "dotprod", "i8mm"};
  return available_isas() + " (" + LEVELS[static_cast<int>(arm_level())] + ")";
#else
  return available_isas();
#endif
}

}  // namespace

int main() {
  int turn = 0;
  for (const Shape shape : SHAPES)
    for (int bits : BITS)
      for (int64_t group_size : GROUP_SIZES)
        for (bool symmetric : {false, true}) {
          const Format format{bits, group_size, symmetric};
          exactly(format, shape);
          for (Dtype dtype : DTYPES) approximately(format, shape, dtype, 0);
          approximately(format, shape, DTYPES[turn++ % 3], 8);
        }
  std::printf("%s: %d cases, %d wrong\n", machine().c_str(), cases, wrong);
  return wrong != 0;
}
