// Clip search: tensors to pointers, checks, threads, registration.

#include "cpu/grid.h"
#include "grid_arguments.h"

namespace torchcoinfer {
namespace {

constexpr int64_t CANDIDATE_GRAIN = 1 << 16;  // values times candidates that are worth a thread

std::tuple<Tensor, Tensor> search_grid_op(Tensor groups, Tensor importance, Tensor start_scales, Tensor start_zeros,
                                          std::vector<double> shares, double unit, ScalarType scale_dtype,
                                          int64_t bits, int64_t refinements) {
  const Checker checks{"search_grid"};
  for (const auto& [name, tensor] : {std::pair("groups", groups), std::pair("importance", importance),
                                     std::pair("start_scales", start_scales), std::pair("start_zeros", start_zeros)})
    checks.cpu(name, tensor);
  const GridArguments given =
      grid_arguments(checks, groups, importance, start_scales, start_zeros, shares, unit, scale_dtype, bits);
  const int64_t count = given.count(), size = groups.size(1);
  const GridSearch search{size, importance.size(0), count, start_scales.size(0),
                          static_cast<int64_t>(given.shares.size()), static_cast<int>(refinements),
                          static_cast<float>((1 << bits) - 1), static_cast<float>(unit), given.scale_dtype,
                          data<float>(given.groups), data<float>(given.importance), data<float>(given.start_scales),
                          data<float>(given.start_zeros), given.shares.data()};
  Tensor scales = empty_cpu({count}, ScalarType::Float), zeros = empty_cpu({count}, ScalarType::Float);
  float* scale_data = mutable_data<float>(scales);
  float* zero_data = mutable_data<float>(zeros);
  const Isa isa = active_isa();
  const int64_t work = size * (search.starts * search.ratios + 2 * refinements + 1);
  torch::stable::parallel_for(0, count, ceil_div(CANDIDATE_GRAIN, work > 0 ? work : 1),
                              [&](int64_t begin, int64_t end) {
                                search_grid(search, isa, begin, end, scale_data, zero_data);
                              });
  return {scales, zeros};
}

}  // namespace
}  // namespace torchcoinfer

STABLE_TORCH_LIBRARY_IMPL(torchcoinfer, CPU, m) {
  m.impl("search_grid", TORCH_BOX(&torchcoinfer::search_grid_op));
}
