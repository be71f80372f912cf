// Clip search: tensors to pointers, checks, registration.

#include "cuda/arguments.h"
#include "grid_arguments.h"

namespace torchcoinfer {
namespace {

std::tuple<Tensor, Tensor> search_grid_op(Tensor groups, Tensor importance, Tensor start_scales, Tensor start_zeros,
                                          std::vector<double> shares, double unit, ScalarType scale_dtype,
                                          int64_t bits, int64_t refinements) {
  const Checker checks{"search_grid"};
  for (const auto& [name, tensor] : {std::pair("importance", importance), std::pair("start_scales", start_scales),
                                     std::pair("start_zeros", start_zeros)})
    same_device(checks, name, tensor, groups);
  const DeviceGuard guard(groups.get_device_index());
  const GridArguments given =
      grid_arguments(checks, groups, importance, start_scales, start_zeros, shares, unit, scale_dtype, bits);
  const int64_t count = given.count(), ratios = static_cast<int64_t>(given.shares.size());
  void* stream = current_stream(groups);
  const Tensor of_shares = empty_beside(groups, {ratios}, ScalarType::Float);
  check_launch(checks, cuda::write_memory(mutable_data<float>(of_shares), given.shares.data(),
                                          ratios * static_cast<int64_t>(sizeof(float)), stream));
  const cuda::GridSearch search{groups.size(1),
                                importance.size(0),
                                count,
                                start_scales.size(0),
                                ratios,
                                static_cast<int>(refinements),
                                static_cast<float>((1 << bits) - 1),
                                static_cast<float>(unit),
                                element(given.scale_dtype),
                                data<float>(given.groups),
                                data<float>(given.importance),
                                data<float>(given.start_scales),
                                data<float>(given.start_zeros),
                                data<float>(of_shares)};
  Tensor scales = empty_beside(groups, {count}, ScalarType::Float);
  Tensor zeros = empty_beside(groups, {count}, ScalarType::Float);
  check_launch(checks, cuda::search_grid(search, mutable_data<float>(scales), mutable_data<float>(zeros), stream));
  return {scales, zeros};
}

}  // namespace
}  // namespace torchcoinfer

TORCHCOINFER_CUDA_OPS(m) {
  m.impl("search_grid", TORCH_BOX(&torchcoinfer::search_grid_op));
}
