// Sparse formats: tensors to pointers, checks, threads, registration.

#include <atomic>
#include <limits>

#include "cpu/decoded_linear.h"
#include "cpu/isa.h"
#include "cpu/sparse.h"
#include "epilogue.h"
#include "packed_arguments.h"

namespace torchcoinfer {
namespace {

constexpr int64_t BLOCK_GRAIN = 1;  // n-blocks a thread takes at least

// The arguments of a pack op; codes that do not fit are refused here, for the packing loops do not look.
DenseSurvivors dense_arguments(const Checker& checks, const Tensor& values, const Tensor& mask, int64_t bits) {
  DenseSurvivors dense = dense_survivors(checks, values, mask, bits);
  if (bits && bits < 8) {
    const uint8_t* codes = data<uint8_t>(dense.values);
    const uint8_t* kept = data<uint8_t>(dense.mask);
    for (int64_t i = 0; i < dense.N * dense.K; ++i)
      check(!kept[i] || codes[i] >> bits == 0, checks.op, "values", "codes below 2^" + std::to_string(bits),
            static_cast<int>(codes[i]));
  }
  return dense;
}

std::tuple<Tensor, Tensor> sparse24_pack_op(Tensor values, Tensor mask, int64_t bits) {
  const Checker checks{"sparse24_pack"};
  const DenseSurvivors dense = dense_arguments(checks, values, mask, bits);
  Tensor index = zeros_cpu({dense.blocks, dense.tiles, INDEX_BYTES}, ScalarType::Byte);
  Tensor packed = zeros_cpu({dense.blocks, dense.tiles, TILE_CHUNKS * chunk_elements(bits)}, values.scalar_type());
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
  const DenseSurvivors dense = dense_arguments(checks, values, mask, bits);
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
  Tensor packed = zeros_cpu({chunks * chunk_elements(bits)}, values.scalar_type());
  void* target = packed.mutable_data_ptr();
  torch::stable::parallel_for(0, dense.blocks, BLOCK_GRAIN, [&](int64_t begin, int64_t end) {
    bitmap_pack_blocks(dense.values.const_data_ptr(), dense.value_bytes, dense.bits, dense.N, dense.K, masks, starts,
                       begin, end, target);
  });
  return {words, offsets, packed};
}

// The matrix without scales, its buffers checked.
SparseMatrix sparse24_matrix(const Checker& checks, const Tensor& index, const Tensor& values, int64_t bits, int64_t N,
                             int64_t K) {
  auto matrix = sparse24_buffers<SparseMatrix>(checks, index, values, bits, N, K);
  matrix.value_dtype = survivor_dtype(checks, values, bits);
  return matrix;
}

SparseMatrix bitmap_matrix(const Checker& checks, const Tensor& mask, const Tensor& offsets, const Tensor& values,
                           int64_t bits, int64_t N, int64_t K) {
  auto matrix = bitmap_buffers<SparseMatrix>(checks, mask, offsets, values, bits, N, K);
  const int32_t* starts = matrix.offsets;
  const int64_t blocks = ceil_div(N, BLOCK_N);
  bool ascending = starts[0] == 0;
  for (int64_t block = 0; block < blocks; ++block) ascending = ascending && starts[block] <= starts[block + 1];
  check(ascending, checks.op, "offsets", "ascending from 0", "another order");
  checks.shape("values", values, {starts[blocks] * chunk_elements(bits)});
  matrix.value_dtype = survivor_dtype(checks, values, bits);
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
  if (!check_survivor_grid(checks, matrix->bits, scales, zeros, group_size)) return;
  const bool asymmetric = check_grid(checks, *scales, zeros, group_size, matrix->N, matrix->K);
  matrix->group_size = group_size;
  matrix->scale_dtype = checks.floating("scales", *scales);
  matrix->scales = scales->const_data_ptr();
  if (asymmetric) matrix->zeros = data<uint8_t>(*zeros);
}

Tensor linear(const Checker& checks, Tensor x, const SparseMatrix& weight, const std::optional<Tensor>& bias,
              int64_t activation_bits, int64_t layout) {
  checks.layout(layout);
  check_survivor_activation(checks, activation_bits, weight.bits);
  const Dtype dtype = checks.floating("x", x);
  const std::vector<float> bias_values = checks.bias(bias, weight.N);
  x = torch::stable::contiguous(x);
  const auto [rows, size] = RowsOf(x, weight.N);
#if TORCHCOINFER_X86
  const Stored stored = weight.bits ? Stored::sparse_codes : Stored::floats;
  if (is_decoded(active_isa(), dtype, rows, activation_bits, stored, weight.N, weight.K)) {
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
