// Products by wgmma (fast_hopper.cuh) of codes of these widths.

#include "cuda/fast_hopper.cuh"

namespace torchcoinfer::cuda {

template void run_hopper<5>(const HopperProblem&, void*);
template void run_hopper<6>(const HopperProblem&, void*);
template void run_hopper<8>(const HopperProblem&, void*);

bool hopper_is_built() {
  cudaFuncAttributes attributes{};
  const auto kernel = multiply_by_wgmma<__half, HopperStage<8, 128>>;
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90;
}

}  // namespace torchcoinfer::cuda
