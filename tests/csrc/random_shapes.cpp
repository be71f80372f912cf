// Random calls of every CPU kernel family in exactly sized heap buffers: to be built with -fsanitize=address,undefined
// (tests/csrc/test_sanitize.py does), so that one access out of bounds ends the program. Compares every path with
// the scalar one. Arguments: cases, first seed. Prints the number of cases, or those that differ.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cpu/activation.h"
#include "cpu/decoded.h"
#include "cpu/pack.h"
#include "cpu/quant_conv2d.h"
#include "cpu/quant_embedding.h"
#include "cpu/quant_linear.h"
#include "cpu/sparse.h"
#include "random_matrices.h"

using namespace torchcoinfer;

namespace {

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

#if TORCHCOINFER_X86
// Plain bfloat16 rows: the dense format and float survivors bit for bit, quantized survivors within bounds.
void plain_rows() {
  if (!isa_available(Isa::avx512)) return;
  const int64_t N = between(1, 70), K = between(1, 300), blocks = ceil_div(N, BLOCK_N);
  const Exact rows(N * K * 2), expected(N * K * 2);
  const Dense table(N, K);
  dequantize_blocks(table.matrix, expected.as<char>(), Dtype::bfloat16, 0, blocks);
  decode_rows(table.matrix, 0, blocks, rows.as<uint16_t>());
  wrong += std::memcmp(rows.as<char>(), expected.as<char>(), static_cast<size_t>(N * K * 2)) != 0;
  const Sparse sparse(N, K);
  wrong += !decode_rows(sparse.matrix, 0, blocks, rows.as<uint16_t>());
  if (sparse.bits) return;
  const Exact dense(N * K * dtype_bytes(sparse.value_dtype)), kept(N * K);
  sparse_unpack_blocks(sparse.matrix, dtype_bytes(sparse.value_dtype), 0, blocks, dense.as<char>(), kept.as<uint8_t>());
  for (int64_t i = 0; i < N * K; ++i)
    store_float(load_float(dense.as<char>(), sparse.value_dtype, i), expected.as<char>(), Dtype::bfloat16, i);
  wrong += std::memcmp(rows.as<char>(), expected.as<char>(), static_cast<size_t>(N * K * 2)) != 0;
}
#else
void plain_rows() {}
#endif

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
  const std::function<void()> kinds[] = {linear, linear, linear, convolution, convolution, sparse, sparse, storage, plain_rows, codec};
  for (int64_t i = 0; i < cases; ++i) {
    generator.seed(static_cast<uint32_t>(seed + i));  // each case by itself again
    const int before = wrong;
    any(kinds)();
    if (wrong != before) std::printf("seed %lld\n", static_cast<long long>(seed + i));
  }
  std::printf("%lld cases, %d wrong\n", static_cast<long long>(cases), wrong);
  return wrong != 0;
}
