// Runs the CUDA kernels on the host model under ThreadSanitizer, each thread of a block one of its fibers: it reports
// accesses to shared or global memory that no barrier orders. Argument "planted": a kernel without its barrier instead.

#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/kernels.h"
#include "layout_device.h"

extern "C" const char* probe_reverse(const int* x, int* y, int mistake);
extern "C" void host_model_configure(int poison, int order);

namespace {

using namespace torchcoinfer;
using cuda::Element;

int failures = 0;

void expect(const char* what, const char* error) {
  if (!error) return;
  std::printf("%s: %s\n", what, error);
  ++failures;
}

std::vector<uint8_t> random_bytes(size_t count) {
  static std::mt19937 generator(1);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
  return bytes;
}

std::vector<float> random_floats(size_t count) {
  const std::vector<uint8_t> bytes = random_bytes(count);
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(bytes[i]) / 128.f - 1.f;
  return values;
}

void run_dense(int64_t N, int64_t K, int bits, int64_t rows) {
  const int64_t blocks = ceil_div(N, BLOCK_N), tiles = ceil_div(K, TILE_K), groups = group_count(K, 64);
  const std::vector<float> weight = random_floats(N * K), x = random_floats(rows * K), bias = random_floats(N);
  std::vector<uint8_t> packed(blocks * tiles * tile_bytes(bits)), zeros(blocks * groups * BLOCK_N), codes(N * K);
  std::vector<float> scales(zeros.size()), dense(N * K), values(rows * tiles * TILE_K), row_scales(rows), y(rows * N);
  int32_t flag = 0;
  expect("quantize_pack", cuda::quantize_pack(weight.data(), Element::float32, bits, 64, N, K, packed.data(),
                                              scales.data(), zeros.data(), Element::float32, &flag, nullptr));
  cuda::DenseMatrix w{packed.data(), scales.data(), zeros.data(), Element::float32, bits, 64, N, K, 0};
  expect("unpack_codes", cuda::unpack_codes(packed.data(), bits, N, K, codes.data(), nullptr));
  expect("pack_codes", cuda::pack_codes(codes.data(), bits, N, K, packed.data(), &flag, nullptr));
  expect("dequantize", cuda::dequantize(w, dense.data(), Element::float32, nullptr));
  const std::vector<int64_t> indices{0, N - 1, -1};
  std::vector<float> embedded(indices.size() * K);
  expect("embed", cuda::embed(w, indices.data(), true, 3, embedded.data(), Element::float32, nullptr));
  for (const int layout : {0, 1}) {
    expect("code_rows", cuda::code_rows(x.data(), Element::float32, rows, K, tiles * TILE_K, values.data(),
                                        Element::float32, row_scales.data(), nullptr));
    expect("quant_linear", cuda::quant_linear(w, values.data(), rows, row_scales.data(), bias.data(), y.data(),
                                              Element::float32, nullptr));
    expect("reorder", cuda::reorder(packed.data(), cuda::Buffer::codes, bits, 1, blocks, tiles, layout == 0, nullptr));
    w.layout = 1;
  }
  expect("float_rows", cuda::float_rows(x.data(), Element::float32, rows, K, values.data(), nullptr));
}

// The fast kernels; random bytes are as good as packed codes in device order.
void run_fast_dense(int64_t N, int64_t K, int bits, int64_t rows) {
  const int64_t blocks = ceil_div(N, BLOCK_N), columns = ceil_div(K, 8) * 8, padded = ceil_div(K, 128) * 128;
  const std::vector<uint8_t> packed = random_bytes(blocks * ceil_div(K, TILE_K) * tile_bytes(bits));
  const std::vector<float> scales = random_floats(blocks * group_count(K, 64) * BLOCK_N), x = random_floats(rows * K);
  const std::vector<uint8_t> zeros = random_bytes(scales.size());
  const cuda::DenseMatrix w{packed.data(), scales.data(), zeros.data(), Element::float32, bits, 64, N, K, 1};
  std::vector<uint16_t> source(rows * K), halves(rows * columns), weight(N * columns), y(rows * N);
  expect("pad_rows", cuda::pad_rows(source.data(), Element::float16, rows, K, columns, halves.data(), nullptr));
  expect("decode_weight", cuda::decode_weight(w, Element::float16, columns, weight.data(), nullptr));
  const bool few = rows <= cuda::GEMV_ROWS;
  std::vector<float> scratch(few ? cuda::gemv_scratch(w, rows) : cuda::gemm_scratch(w, rows)), row_scales(rows);
  expect("fast linear", (few ? cuda::gemv_linear : cuda::gemm_linear)(w, halves.data(), Element::float16, columns, rows,
                                                                      nullptr, y.data(), scratch.data(), nullptr));
  if (rows >= 64) {
    scratch.resize(cuda::hopper_scratch(w, rows));
    expect("hopper_linear", cuda::hopper_linear(w, halves.data(), Element::float16, columns, rows, nullptr, y.data(),
                                                scratch.data(), nullptr));
  }
  const int64_t sum_rows = ceil_div(rows, cuda::BYTE_SUM_ROWS) * cuda::BYTE_SUM_ROWS;
  std::vector<int8_t> codes(rows * padded);
  std::vector<int32_t> sums(padded / 64 * sum_rows);
  expect("byte_rows", cuda::byte_rows(x.data(), Element::float32, rows, K, bits, 64, sum_rows, codes.data(), sums.data(),
                                      row_scales.data(), nullptr));
  scratch.resize(cuda::byte_scratch(w, rows));
  expect("byte_linear", cuda::byte_linear(w, codes.data(), sums.data(), sum_rows, row_scales.data(), rows, nullptr,
                                          y.data(), Element::float16, scratch.data(), nullptr));
}

void run_convolution() {
  const int64_t K = 4 * 9, N = 6;
  const std::vector<uint8_t> packed = random_bytes(2 * tile_bytes(4));
  const std::vector<float> scales = random_floats(2 * BLOCK_N), x = random_floats(2 * 8 * 5 * 5);
  const cuda::DenseMatrix w{packed.data(), scales.data(), nullptr, Element::float32, 4, 32, N, K, 0};
  const cuda::ConvShape shape{2, 8, 5, 5, N, 5, 5, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 2, {200, 25, 5, 1}};
  std::vector<float> maxima(2 * 25 * 2), y(2 * N * 25);
  expect("quant_conv2d", cuda::quant_conv2d(w, shape, x.data(), maxima.data(), nullptr, y.data(), Element::float32,
                                            nullptr));
  std::vector<float> patches(2 * 25 * 8 * 9);
  expect("gather_patches", cuda::gather_patches(shape, x.data(), Element::float32, 0, 2, patches.data(), nullptr));
}

void run_sparse(int64_t N, int64_t K, int bits, bool paired) {
  const int64_t blocks = ceil_div(N, BLOCK_N), tiles = ceil_div(K, TILE_K), rows = 3;
  std::vector<uint8_t> kept = random_bytes(N * K), values = random_bytes(N * K), index(blocks * tiles * INDEX_BYTES);
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = paired ? i % K % 4 < 2 : kept[i] % 3 == 0;
  for (uint8_t& value : values) value = static_cast<uint8_t>(value & ((1 << bits) - 1));
  std::vector<uint64_t> masks(blocks * tiles * TILE_GROUPS);
  std::vector<int64_t> counts(blocks);
  std::vector<int32_t> offsets{0};
  int64_t chunks = blocks * tiles * TILE_CHUNKS;
  int32_t flag = 0;
  if (!paired) {
    expect("bitmap_masks", cuda::bitmap_masks(kept.data(), N, K, masks.data(), counts.data(), nullptr));
    for (const int64_t count : counts) offsets.push_back(static_cast<int32_t>(offsets.back() + ceil_div(count, CHUNK)));
    chunks = offsets.back();
  }
  std::vector<uint8_t> survivors(chunks * chunk_bytes(bits)), dense(N * K), flags(N * K);
  expect("sparse pack", paired ? cuda::sparse24_pack(values.data(), 1, kept.data(), bits, N, K, index.data(),
                                                     survivors.data(), &flag, nullptr)
                               : cuda::bitmap_pack(values.data(), 1, bits, N, K, masks.data(), offsets.data(), chunks,
                                                   survivors.data(), &flag, nullptr));
  const std::vector<float> scales = random_floats(blocks * BLOCK_N), x = random_floats(rows * tiles * TILE_K);
  std::vector<float> y(rows * N);
  cuda::SparseMatrix w{paired,           index.data(), masks.data(), offsets.data(), survivors.data(), chunks,
                             Element::float32, bits,         scales.data(), nullptr,        Element::float32, 0,
                             N,                K,            0};
  expect("sparse_unpack", cuda::sparse_unpack(w, 1, dense.data(), flags.data(), &flag, nullptr));
  expect("sparse_linear", cuda::sparse_linear(w, x.data(), rows, nullptr, nullptr, y.data(), Element::float32, nullptr));
  std::vector<uint16_t> weight(N * K);
  expect("sparse_dequantize", cuda::sparse_dequantize(w, weight.data(), Element::float16, nullptr));
  std::vector<uint16_t> halves(70 * ceil_div(K, 8) * 8), out(70 * N);
  std::vector<uint8_t> wide(blocks * tiles * tile_bytes(8));
  if (!paired) {
    for (const int64_t count : {3, 70})
      expect("bitmap", cuda::fast_bitmap(w, halves.data(), ceil_div(K, 8) * 8, count, nullptr, nullptr, out.data(),
                                         Element::float16, nullptr));
    expect("expand_codes", cuda::expand_codes(w, wide.data(), nullptr));
    expect("bitmap_dequantize", cuda::bitmap_dequantize(w, weight.data(), Element::float16, nullptr));
    return;
  }
  expect("reorder index", cuda::reorder(index.data(), cuda::Buffer::index, 0, 1, blocks, tiles, true, nullptr));
  expect("reorder values",
         cuda::reorder(survivors.data(), cuda::Buffer::survivors, bits, 1, blocks, tiles, true, nullptr));
  w.layout = 1;
  expect("expand_codes", cuda::expand_codes(w, wide.data(), nullptr));
  w.scale_type = Element::float16;
  for (const int64_t count : {3, 70}) {
    std::vector<float> scratch(cuda::sparse24_scratch(w, count));
    if (count <= cuda::SPARSE24_CODE_ROWS)
      expect("sparse24 of codes", cuda::fast_sparse24(w, halves.data(), ceil_div(K, 8) * 8, count, scales.data(), nullptr,
                                                      out.data(), Element::float16, scratch.data(), nullptr));
    expect("sparse24", cuda::fast_sparse24(w, halves.data(), ceil_div(K, 8) * 8, count, nullptr, nullptr,
                                           out.data(), Element::float16, scratch.data(), nullptr));
  }
}

void run_codec(int64_t n, int64_t channels, int bits, bool by_token) {
  const cuda::CodecShape shape{3, n, channels, bits, by_token};
  const std::vector<float> x = random_floats(3 * n);
  std::vector<float> scale(by_token ? 3 : channels), low(scale.size()), y(3 * n), scratch(cuda::encode_scratch(shape));
  std::vector<uint8_t> codes(3 * ceil_div(n * bits, 8));
  expect("encode", cuda::encode(shape, x.data(), Element::float32, scratch.data(), scale.data(), low.data(),
                                codes.data(), nullptr));
  expect("decode", cuda::decode(shape, codes.data(), scale.data(), low.data(), y.data(), Element::float32, nullptr));
}

}  // namespace

int main(int count, char** arguments) {
  host_model_configure(0xff, 7);
  if (count > 1 && std::strcmp(arguments[1], "planted") == 0) {
    std::vector<int> x(64, 1), y(64);
    expect("probe_reverse", probe_reverse(x.data(), y.data(), 1));
    return failures;
  }
  for (const int bits : {2, 3, 4, 5, 6, 8}) run_dense(37, 170, bits, 9);
  run_fast_dense(37, 170, 3, 12);
  run_fast_dense(20, 140, 8, 70);   // large tiles
  run_fast_dense(130, 640, 5, 17);  // thread blocks share tiles
  run_convolution();
  for (const int bits : {3, 4, 8}) {
    run_sparse(37, 170, bits, true);
    run_sparse(37, 170, bits, false);
  }
  for (const bool by_token : {true, false}) {
    run_codec(70, 14, 5, by_token);
    run_codec(9000, 24, 3, by_token);  // several parts
  }
  std::printf("%d failures\n", failures);
  return failures;
}
