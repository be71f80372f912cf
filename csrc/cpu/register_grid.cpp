// Clip search: tensors to pointers, checks, threads, registration.

#include "cpu/grid.h"
#include "cpu/tensor.h"

namespace torchcoinfer {
namespace {

constexpr int64_t CANDIDATE_GRAIN = 1 << 16;  // values times candidates that are worth a thread

std::tuple<Tensor, Tensor> search_grid_op(Tensor groups, Tensor importance, Tensor start_scales, Tensor start_zeros,
                                          std::vector<double> shares, double unit, ScalarType scale_dtype,
                                          int64_t bits, int64_t refinements) {
  const Checker checks{"search_grid"};
  checks.bits(bits);
  const Dtype stored = checks.floating("scale_dtype", scale_dtype);
  for (const auto& [name, tensor] : {std::pair("groups", groups), std::pair("importance", importance),
                                     std::pair("start_scales", start_scales), std::pair("start_zeros", start_zeros)}) {
    checks.cpu(name, tensor);
    checks.dtype(name, tensor, ScalarType::Float);
    check(tensor.dim() == 2, checks.op, name, "2 dimensions", shape_text(tensor));
  }
  const int64_t count = groups.size(0), size = groups.size(1);
  check(importance.size(0) > 0, checks.op, "importance", "at least one row", shape_text(importance));
  checks.shape("importance", importance, {importance.size(0), size});
  check(start_scales.size(0) > 0, checks.op, "start_scales", "at least one row", shape_text(start_scales));
  checks.shape("start_scales", start_scales, {start_scales.size(0), count});
  checks.shape("start_zeros", start_zeros, {start_scales.size(0), count});
  check(unit > 0, checks.op, "unit", "a positive number", unit);
  groups = torch::stable::contiguous(groups), importance = torch::stable::contiguous(importance);
  start_scales = torch::stable::contiguous(start_scales), start_zeros = torch::stable::contiguous(start_zeros);
  const std::vector<float> ratios(shares.begin(), shares.end());
  const GridSearch search{size, importance.size(0), count, start_scales.size(0), static_cast<int64_t>(ratios.size()),
                          static_cast<int>(refinements), static_cast<float>((1 << bits) - 1),
                          static_cast<float>(unit), stored, data<float>(groups), data<float>(importance),
                          data<float>(start_scales), data<float>(start_zeros), ratios.data()};
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
