// Sparse formats: tensors to pointers, checks, threads, registration.

#include <atomic>
#include <limits>

#include "cpu/decoded_linear.h"
#include "cpu/isa.h"
#include "cpu/sparse.h"
#include "cpu/tensor.h"
#include "epilogue.h"

namespace torchcoinfer {
namespace {

constexpr int64_t BLOCK_GRAIN = 1;  // n-blocks a thread takes at least

void check_bits(const Checker& checks, int64_t bits) {
  check(bits == 0 || is_valid_bits(bits), checks.op, "bits", "0 (float survivors), 2, 3, 4, 5, 6 or 8", bits);
}

int64_t element_bytes(const Checker& checks, const Tensor& values, int64_t bits) {
  if (bits == 0) return dtype_bytes(checks.floating("values", values));
  checks.dtype("values", values, ScalarType::Byte);
  return 1;
}

// What both pack ops take.
struct Dense {
  Tensor values, mask;
  int64_t N, K, blocks, tiles, value_bytes;
  int bits;
};

Dense dense_arguments(const Checker& checks, const Tensor& values, const Tensor& mask, int64_t bits) {
  check_bits(checks, bits);
  check(values.dim() == 2, checks.op, "values", "2 dimensions [N, K]", shape_text(values));
  checks.dtype("mask", mask, ScalarType::Bool);
  const int64_t N = values.size(0), K = values.size(1);
  checks.shape("mask", mask, {N, K});
  Dense dense{torch::stable::contiguous(values), torch::stable::contiguous(mask), N, K, ceil_div(N, BLOCK_N),
              ceil_div(K, TILE_K), element_bytes(checks, values, bits), static_cast<int>(bits)};
  if (bits && bits < 8) {
    const uint8_t* codes = data<uint8_t>(dense.values);
    const uint8_t* kept = data<uint8_t>(dense.mask);
    for (int64_t i = 0; i < N * K; ++i)
      check(!kept[i] || codes[i] >> bits == 0, checks.op, "values", "codes below 2^" + std::to_string(bits),
            static_cast<int>(codes[i]));
  }
  return dense;
}

std::tuple<Tensor, Tensor> sparse24_pack_op(Tensor values, Tensor mask, int64_t bits) {
  const Checker checks{"sparse24_pack"};
  const Dense dense = dense_arguments(checks, values, mask, bits);
  const int64_t length = bits ? TILE_CHUNKS * chunk_bytes(dense.bits) : TILE_CHUNKS * CHUNK;
  Tensor index = zeros_cpu({dense.blocks, dense.tiles, INDEX_BYTES}, ScalarType::Byte);
  Tensor packed = zeros_cpu({dense.blocks, dense.tiles, length}, values.scalar_type());
  uint8_t* index_data = mutable_data<uint8_t>(index);
  void* target = packed.mutable_data_ptr();
  std::atomic<bool> fits{true};
  torch::stable::parallel_for(0, dense.blocks, BLOCK_GRAIN, [&](int64_t begin, int64_t end) {
    if (!sparse24_pack_blocks(dense.values.const_data_ptr(), dense.value_bytes, data<uint8_t>(dense.mask), dense.bits,
                              dense.N, dense.K, begin, end, index_data, target))
      fits = false;
  });
  check(fits, checks.op, "mask", "at most 2 of 4 consecutive columns kept", "more than 2 of 4");
  return {index, packed};
}

std::tuple<Tensor, Tensor, Tensor> bitmap_pack_op(Tensor values, Tensor mask, int64_t bits) {
  const Checker checks{"bitmap_pack"};
  const Dense dense = dense_arguments(checks, values, mask, bits);
  Tensor words = empty_cpu({dense.blocks, dense.tiles, TILE_GROUPS}, ScalarType::Long);
  auto* masks = reinterpret_cast<uint64_t*>(mutable_data<int64_t>(words));
  std::vector<int64_t> counts(dense.blocks);
  torch::stable::parallel_for(0, dense.blocks, BLOCK_GRAIN, [&](int64_t begin, int64_t end) {
    bitmap_masks(data<uint8_t>(dense.mask), dense.N, dense.K, begin, end, masks, counts.data());
  });
  Tensor offsets = empty_cpu({dense.blocks + 1}, ScalarType::Int);
  int32_t* starts = mutable_data<int32_t>(offsets);
  int64_t chunks = 0;
  for (int64_t block = 0; block <= dense.blocks; ++block) {
    check(chunks <= std::numeric_limits<int32_t>::max(), checks.op, "mask", "fewer than 2^37 kept weights", "more");
    starts[block] = static_cast<int32_t>(chunks);
    if (block < dense.blocks) chunks += ceil_div(counts[block], CHUNK);
  }
  Tensor packed = zeros_cpu({chunks * (bits ? chunk_bytes(dense.bits) : CHUNK)}, values.scalar_type());
  void* target = packed.mutable_data_ptr();
  torch::stable::parallel_for(0, dense.blocks, BLOCK_GRAIN, [&](int64_t begin, int64_t end) {
    bitmap_pack_blocks(dense.values.const_data_ptr(), dense.value_bytes, dense.bits, dense.N, dense.K, masks, starts,
                       begin, end, target);
  });
  return {words, offsets, packed};
}

SparseMatrix without_scales(const Tensor& values, Dtype dtype, int bits, int64_t N, int64_t K) {
  SparseMatrix matrix{};
  matrix.values = values.const_data_ptr();
  matrix.value_dtype = dtype;
  matrix.bits = bits;
  matrix.N = N;
  matrix.K = K;
  return matrix;
}

// The matrix without scales, its buffers checked.
SparseMatrix sparse24_matrix(const Checker& checks, const Tensor& index, const Tensor& values, int64_t bits, int64_t N,
                             int64_t K) {
  check_bits(checks, bits);
  const int64_t blocks = ceil_div(N, BLOCK_N), tiles = ceil_div(K, TILE_K);
  checks.dtype("index", index, ScalarType::Byte);
  checks.shape("index", index, {blocks, tiles, INDEX_BYTES});
  checks.contiguous("index", index);
  element_bytes(checks, values, bits);
  const int width = static_cast<int>(bits);
  checks.shape("values", values, {blocks, tiles, TILE_CHUNKS * (bits ? chunk_bytes(width) : CHUNK)});
  checks.contiguous("values", values);
  const Dtype dtype = bits ? Dtype::float32 : checks.floating("values", values);
  SparseMatrix matrix = without_scales(values, dtype, width, N, K);
  matrix.paired = true;
  matrix.index = data<uint8_t>(index);
  matrix.chunks = blocks * tiles * TILE_CHUNKS;
  return matrix;
}

SparseMatrix bitmap_matrix(const Checker& checks, const Tensor& mask, const Tensor& offsets, const Tensor& values,
                           int64_t bits, int64_t N, int64_t K) {
  check_bits(checks, bits);
  const int64_t blocks = ceil_div(N, BLOCK_N), tiles = ceil_div(K, TILE_K);
  checks.dtype("mask", mask, ScalarType::Long);
  checks.shape("mask", mask, {blocks, tiles, TILE_GROUPS});
  checks.contiguous("mask", mask);
  checks.dtype("offsets", offsets, ScalarType::Int);
  checks.shape("offsets", offsets, {blocks + 1});
  checks.contiguous("offsets", offsets);
  element_bytes(checks, values, bits);
  const int width = static_cast<int>(bits);
  const int32_t* starts = data<int32_t>(offsets);
  bool ascending = starts[0] == 0;
  for (int64_t block = 0; block < blocks; ++block) ascending = ascending && starts[block] <= starts[block + 1];
  check(ascending, checks.op, "offsets", "ascending from 0", "another order");
  checks.shape("values", values, {starts[blocks] * (bits ? chunk_bytes(width) : CHUNK)});
  checks.contiguous("values", values);
  const Dtype dtype = bits ? Dtype::float32 : checks.floating("values", values);
  SparseMatrix matrix = without_scales(values, dtype, width, N, K);
  matrix.masks = reinterpret_cast<const uint64_t*>(data<int64_t>(mask));
  matrix.offsets = starts;
  matrix.chunks = starts[blocks];
  return matrix;
}

// What a call says where a block's masks and its survivors disagree in number.
void check_sound(const Checker& checks, bool sound, const SparseMatrix& weight) {
  check(sound, checks.op, weight.paired ? "index" : "mask", "as many kept weights as survivors", "another number");
}

std::tuple<Tensor, Tensor> unpack(const Checker& checks, const SparseMatrix& matrix, ScalarType dtype) {
  Tensor dense = zeros_cpu({matrix.N, matrix.K}, dtype), kept = zeros_cpu({matrix.N, matrix.K}, ScalarType::Bool);
  void* target = dense.mutable_data_ptr();
  uint8_t* flags = mutable_data<uint8_t>(kept);
  const int64_t value_bytes = matrix.bits ? 1 : dtype_bytes(matrix.value_dtype);
  std::atomic<bool> sound{true};
  torch::stable::parallel_for(0, ceil_div(matrix.N, BLOCK_N), BLOCK_GRAIN, [&](int64_t begin, int64_t end) {
    if (!sparse_unpack_blocks(matrix, value_bytes, begin, end, target, flags)) sound = false;
  });
  check_sound(checks, sound, matrix);
  return {dense, kept};
}

std::tuple<Tensor, Tensor> sparse24_unpack_op(Tensor index, Tensor values, int64_t bits, int64_t N, int64_t K) {
  const Checker checks{"sparse24_unpack"};
  return unpack(checks, sparse24_matrix(checks, index, values, bits, N, K), values.scalar_type());
}

std::tuple<Tensor, Tensor> bitmap_unpack_op(Tensor mask, Tensor offsets, Tensor values, int64_t bits, int64_t N,
                                            int64_t K) {
  const Checker checks{"bitmap_unpack"};
  return unpack(checks, bitmap_matrix(checks, mask, offsets, values, bits, N, K), values.scalar_type());
}

void add_scales(const Checker& checks, const std::optional<Tensor>& scales, const std::optional<Tensor>& zeros,
                int64_t group_size, SparseMatrix* matrix) {
  if (matrix->bits == 0) {
    check(group_size == 0, checks.op, "group_size", "0 for float survivors", group_size);
    check(!scales.has_value() && !zeros.has_value(), checks.op, "scales", "none for float survivors", "a tensor");
    return;
  }
  checks.group_size(group_size);
  check(scales.has_value(), checks.op, "scales", "the scales of the codes", "None");
  const int64_t blocks = ceil_div(matrix->N, BLOCK_N), groups = group_count(matrix->K, group_size);
  matrix->group_size = group_size;
  matrix->scale_dtype = checks.floating("scales", *scales);
  checks.shape("scales", *scales, {blocks, groups, BLOCK_N});
  checks.contiguous("scales", *scales);
  matrix->scales = scales->const_data_ptr();
  if (!zeros.has_value() || zeros->numel() == 0) return;
  checks.dtype("zeros", *zeros, ScalarType::Byte);
  checks.shape("zeros", *zeros, {blocks, groups, BLOCK_N});
  checks.contiguous("zeros", *zeros);
  matrix->zeros = data<uint8_t>(*zeros);
}

Tensor linear(const Checker& checks, Tensor x, const SparseMatrix& weight, const std::optional<Tensor>& bias,
              int64_t activation_bits, int64_t layout) {
  checks.layout(layout);
  const bool known = activation_bits == 0 || (activation_bits == 8 && weight.bits);
  check(known, checks.op, "activation_bits", "0 (weight-only), or 8 with quantized survivors", activation_bits);
  const Dtype dtype = checks.floating("x", x);
  const std::vector<float> bias_values = checks.bias(bias, weight.N);
  x = torch::stable::contiguous(x);
  const auto [rows, size] = RowsOf(x, weight.N);
#if TORCHCOINFER_X86
  if (is_decoded(active_isa(), dtype, rows, activation_bits, weight.bits == 0, weight.N, weight.K)) {
    const auto decode = [&](int64_t begin, int64_t end, uint16_t* of_rows) {
      return decode_rows(weight, begin, end, of_rows);
    };
    const std::optional<Tensor> product = decoded_linear(x, weight.N, bias, decode);
    check_sound(checks, product.has_value(), weight);
    return *product;
  }
#endif
  Tensor y = empty_cpu(size, x.scalar_type());
  const float* bias_data = bias_values.empty() ? nullptr : bias_values.data();
  const Output out{y.mutable_data_ptr(), dtype, weight.N, 1, 0, weight.N, bias_data};
  const SourceRows source{x.const_data_ptr(), dtype, weight.K, weight.K};
  const SparseCall call{weight, source, rows, static_cast<int>(activation_bits), out, active_isa(),
                        torch::stable::get_num_threads()};
  check_sound(checks, run_sparse_linear(call, on_torch_threads), weight);
  return y;
}

int64_t columns_of(const Checker& checks, const Tensor& x) {
  check(x.dim() >= 1, checks.op, "x", "at least 1 dimension [..., K]", shape_text(x));
  return x.size(-1);
}

Tensor sparse24_linear_op(Tensor x, Tensor index, Tensor values, std::optional<Tensor> scales,
                          std::optional<Tensor> zeros, std::optional<Tensor> bias, int64_t bits, int64_t group_size,
                          int64_t out_features, int64_t activation_bits, int64_t layout, std::string activation) {
  const Checker checks{"sparse24_linear"};
  check_activation(checks.op, activation);
  SparseMatrix weight = sparse24_matrix(checks, index, values, bits, out_features, columns_of(checks, x));
  add_scales(checks, scales, zeros, group_size, &weight);
  return activated(linear(checks, x, weight, bias, activation_bits, layout), activation);
}

Tensor bitmap_linear_op(Tensor x, Tensor mask, Tensor offsets, Tensor values, std::optional<Tensor> scales,
                        std::optional<Tensor> zeros, std::optional<Tensor> bias, int64_t bits, int64_t group_size,
                        int64_t out_features, int64_t activation_bits, int64_t layout, std::string activation) {
  const Checker checks{"bitmap_linear"};
  check_activation(checks.op, activation);
  SparseMatrix weight = bitmap_matrix(checks, mask, offsets, values, bits, out_features, columns_of(checks, x));
  add_scales(checks, scales, zeros, group_size, &weight);
  return activated(linear(checks, x, weight, bias, activation_bits, layout), activation);
}

}  // namespace
}  // namespace torchcoinfer

STABLE_TORCH_LIBRARY_IMPL(torchcoinfer, CPU, m) {
  m.impl("sparse24_pack", TORCH_BOX(&torchcoinfer::sparse24_pack_op));
  m.impl("sparse24_unpack", TORCH_BOX(&torchcoinfer::sparse24_unpack_op));
  m.impl("sparse24_linear", TORCH_BOX(&torchcoinfer::sparse24_linear_op));
  m.impl("bitmap_pack", TORCH_BOX(&torchcoinfer::bitmap_pack_op));
  m.impl("bitmap_unpack", TORCH_BOX(&torchcoinfer::bitmap_unpack_op));
  m.impl("bitmap_linear", TORCH_BOX(&torchcoinfer::bitmap_linear_op));
}
