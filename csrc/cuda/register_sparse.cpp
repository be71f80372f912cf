// Sparse formats and the device order: tensors to pointers, checks, registration.

#include <limits>

#include "cuda/sparse_paths.h"
#include "epilogue.h"

namespace torchcoinfer {
namespace {

DenseSurvivors dense_arguments(const Checker& checks, const Tensor& values, const Tensor& mask, int64_t bits) {
  same_device(checks, "mask", mask, values);
  return dense_survivors(checks, values, mask, bits);
}

std::tuple<Tensor, Tensor> sparse24_pack_op(Tensor values, Tensor mask, int64_t bits) {
  const Checker checks{"sparse24_pack"};
  const DeviceGuard guard(values.get_device_index());
  const DenseSurvivors dense = dense_arguments(checks, values, mask, bits);
  const int64_t length = TILE_CHUNKS * chunk_elements(bits);
  Tensor index = empty_beside(values, {dense.blocks, dense.tiles, INDEX_BYTES}, ScalarType::Byte);
  Tensor packed = empty_beside(values, {dense.blocks, dense.tiles, length}, values.scalar_type());
  const Flag flag(values);
  check_launch(checks, cuda::sparse24_pack(dense.values.const_data_ptr(), dense.value_bytes, data<uint8_t>(dense.mask),
                                           dense.bits, dense.N, dense.K, mutable_data<uint8_t>(index),
                                           packed.mutable_data_ptr(), flag.place(), current_stream(values)));
  check(!flag.raised(checks), checks.op, "mask", "at most 2 of 4 consecutive columns kept, codes below 2^bits",
        "more than 2 of 4, or a larger code");
  return {index, packed};
}

std::tuple<Tensor, Tensor, Tensor> bitmap_pack_op(Tensor values, Tensor mask, int64_t bits) {
  const Checker checks{"bitmap_pack"};
  const DeviceGuard guard(values.get_device_index());
  const DenseSurvivors dense = dense_arguments(checks, values, mask, bits);
  void* stream = current_stream(values);
  Tensor words = empty_beside(values, {dense.blocks, dense.tiles, TILE_GROUPS}, ScalarType::Long);
  Tensor counts = empty_beside(values, {dense.blocks}, ScalarType::Long);
  auto* masks = reinterpret_cast<uint64_t*>(mutable_data<int64_t>(words));
  check_launch(checks, cuda::bitmap_masks(data<uint8_t>(dense.mask), dense.N, dense.K, masks,
                                          mutable_data<int64_t>(counts), stream));
  // the size of the output depends on the mask: the host has to know it
  std::vector<int64_t> of_blocks(dense.blocks);
  check_launch(checks, cuda::read_memory(of_blocks.data(), data<int64_t>(counts), 8 * dense.blocks, stream));
  if (dense.tiles == 0) of_blocks.assign(of_blocks.size(), 0);
  std::vector<int32_t> starts{0};
  int64_t chunks = 0;
  for (const int64_t count : of_blocks) {
    chunks += ceil_div(count, CHUNK);
    check(chunks <= std::numeric_limits<int32_t>::max(), checks.op, "mask", "fewer than 2^37 kept weights", "more");
    starts.push_back(static_cast<int32_t>(chunks));
  }
  Tensor offsets = empty_beside(values, {dense.blocks + 1}, ScalarType::Int);
  check_launch(checks, cuda::write_memory(mutable_data<int32_t>(offsets), starts.data(), 4 * starts.size(), stream));
  Tensor packed = empty_beside(values, {chunks * chunk_elements(bits)}, values.scalar_type());
  const Flag flag(values);
  check_launch(checks, cuda::bitmap_pack(dense.values.const_data_ptr(), dense.value_bytes, dense.bits, dense.N,
                                         dense.K, masks, data<int32_t>(offsets), chunks, packed.mutable_data_ptr(),
                                         flag.place(), stream));
  check(!flag.raised(checks), checks.op, "values", "codes below 2^" + std::to_string(bits), "a larger code");
  return {words, offsets, packed};
}

// The matrix without scales, its buffers checked.
cuda::SparseMatrix sparse24_matrix(const Checker& checks, const Tensor& index, const Tensor& values, int64_t bits,
                                   int64_t N, int64_t K) {
  auto matrix = sparse24_buffers<cuda::SparseMatrix>(checks, index, values, bits, N, K);
  same_device(checks, "values", values, index);
  matrix.value_type = element(survivor_dtype(checks, values, bits));
  return matrix;
}

// Offsets stay on the device, unread: kernels never read beyond the values, whatever the offsets say.
cuda::SparseMatrix bitmap_matrix(const Checker& checks, const Tensor& mask, const Tensor& offsets, const Tensor& values,
                                 int64_t bits, int64_t N, int64_t K) {
  auto matrix = bitmap_buffers<cuda::SparseMatrix>(checks, mask, offsets, values, bits, N, K);
  same_device(checks, "offsets", offsets, mask);
  same_device(checks, "values", values, mask);
  const int64_t chunk = chunk_elements(bits);
  check(values.dim() == 1 && values.numel() % chunk == 0, checks.op, "values",
        "1 dimension of whole chunks of " + std::to_string(chunk), shape_text(values));
  matrix.value_type = element(survivor_dtype(checks, values, bits));
  matrix.chunks = values.numel() / chunk;
  return matrix;
}

std::tuple<Tensor, Tensor> unpack(const Checker& checks, const cuda::SparseMatrix& matrix, const Tensor& values) {
  const DeviceGuard guard(values.get_device_index());
  Tensor dense = empty_beside(values, {matrix.N, matrix.K}, values.scalar_type());
  Tensor kept = empty_beside(values, {matrix.N, matrix.K}, ScalarType::Bool);
  const Flag flag(values);
  check_launch(checks, cuda::sparse_unpack(matrix, survivor_bytes(checks, values, matrix.bits),
                                           dense.mutable_data_ptr(), mutable_data<uint8_t>(kept), flag.place(),
                                           current_stream(values)));
  check(!flag.raised(checks), checks.op, "mask", "as many kept weights as survivors", "another number");
  return {dense, kept};
}

std::tuple<Tensor, Tensor> sparse24_unpack_op(Tensor index, Tensor values, int64_t bits, int64_t N, int64_t K) {
  const Checker checks{"sparse24_unpack"};
  return unpack(checks, sparse24_matrix(checks, index, values, bits, N, K), values);
}

std::tuple<Tensor, Tensor> bitmap_unpack_op(Tensor mask, Tensor offsets, Tensor values, int64_t bits, int64_t N,
                                            int64_t K) {
  const Checker checks{"bitmap_unpack"};
  return unpack(checks, bitmap_matrix(checks, mask, offsets, values, bits, N, K), values);
}

Tensor linear(const Checker& checks, const Tensor& x, cuda::SparseMatrix weight, const Tensor& values,
              const std::optional<Tensor>& scales, const std::optional<Tensor>& zeros,
              const std::optional<Tensor>& bias, int64_t group_size, int64_t activation_bits) {
  check_survivor_activation(checks, activation_bits, weight.bits);
  same_device(checks, "x", x, values);
  if (check_survivor_grid(checks, weight.bits, scales, zeros, group_size))
    set_grid(checks, *scales, zeros, group_size, values, &weight);
  const DeviceGuard guard(x.get_device_index());
  if (const std::optional<Tensor> y = fast_sparse_linear(checks, weight, x, bias, activation_bits)) return *y;
  const Tensor of_bias = bias_values(checks, bias, weight.N, values);
  const LinearRows rows = linear_rows(checks, x, weight.N, activation_bits);
  check_launch(checks, cuda::sparse_linear(weight, data<float>(rows.values), rows.rows, rows.row_scales(),
                                           bias_data(of_bias), rows.y.mutable_data_ptr(), element(rows.dtype),
                                           current_stream(x)));
  return rows.y;
}

Tensor sparse24_linear_op(Tensor x, Tensor index, Tensor values, std::optional<Tensor> scales,
                          std::optional<Tensor> zeros, std::optional<Tensor> bias, int64_t bits, int64_t group_size,
                          int64_t out_features, int64_t activation_bits, int64_t layout, std::string activation) {
  const Checker checks{"sparse24_linear"};
  check_activation(checks.op, activation);
  cuda::SparseMatrix weight = sparse24_matrix(checks, index, values, bits, out_features, columns_of(checks, x));
  check_layout(checks, layout);
  weight.layout = static_cast<int>(layout);
  return activated(linear(checks, x, weight, values, scales, zeros, bias, group_size, activation_bits), activation);
}

Tensor bitmap_linear_op(Tensor x, Tensor mask, Tensor offsets, Tensor values, std::optional<Tensor> scales,
                        std::optional<Tensor> zeros, std::optional<Tensor> bias, int64_t bits, int64_t group_size,
                        int64_t out_features, int64_t activation_bits, int64_t layout, std::string activation) {
  const Checker checks{"bitmap_linear"};
  check_activation(checks.op, activation);
  check(layout == CANONICAL_LAYOUT, checks.op, "layout", "0 (canonical; the format has no other)", layout);
  const cuda::SparseMatrix weight =
      bitmap_matrix(checks, mask, offsets, values, bits, out_features, columns_of(checks, x));
  return activated(linear(checks, x, weight, values, scales, zeros, bias, group_size, activation_bits), activation);
}

void reorder_op(Tensor buffer, std::string kind, int64_t bits, bool to_device) {
  const Checker checks{"reorder_"};
  const bool codes = kind == "codes", survivors = kind == "survivors", index = kind == "index";
  check(codes || survivors || index, checks.op, "kind", "'codes', 'survivors' or 'index'", kind);
  check(buffer.dim() == 3, checks.op, "buffer", "3 dimensions [NB, KT, tile]", shape_text(buffer));
  if (codes) checks.bits(bits);
  if (survivors) check_survivor_bits(checks, bits);
  const int width = static_cast<int>(bits);
  const bool floats = survivors && bits == 0;
  const int64_t value_bytes = floats ? dtype_bytes(checks.floating("buffer", buffer)) : 1;
  if (!floats) checks.dtype("buffer", buffer, ScalarType::Byte);
  const int64_t tile = codes ? tile_bytes(width) : index ? INDEX_BYTES : TILE_CHUNKS * chunk_elements(bits);
  checks.shape("buffer", buffer, {buffer.size(0), buffer.size(1), tile});
  checks.contiguous("buffer", buffer);
  const DeviceGuard guard(buffer.get_device_index());
  const cuda::Buffer what = codes ? cuda::Buffer::codes : index ? cuda::Buffer::index : cuda::Buffer::survivors;
  check_launch(checks, cuda::reorder(static_cast<uint8_t*>(buffer.mutable_data_ptr()), what, width, value_bytes,
                                     buffer.size(0), buffer.size(1), to_device, current_stream(buffer)));
}

}  // namespace
}  // namespace torchcoinfer

TORCHCOINFER_CUDA_OPS(m) {
  m.impl("sparse24_pack", TORCH_BOX(&torchcoinfer::sparse24_pack_op));
  m.impl("sparse24_unpack", TORCH_BOX(&torchcoinfer::sparse24_unpack_op));
  m.impl("sparse24_linear", TORCH_BOX(&torchcoinfer::sparse24_linear_op));
  m.impl("bitmap_pack", TORCH_BOX(&torchcoinfer::bitmap_pack_op));
  m.impl("bitmap_unpack", TORCH_BOX(&torchcoinfer::bitmap_unpack_op));
  m.impl("bitmap_linear", TORCH_BOX(&torchcoinfer::bitmap_linear_op));
  m.impl("reorder_", TORCH_BOX(&torchcoinfer::reorder_op));
}
