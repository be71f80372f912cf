// Products by wgmma (fast_hopper.cuh) of codes of these widths.

#include "cuda/fast_hopper.cuh"

namespace torchcoinfer::cuda {

template void run_hopper<5>(const HopperProblem&, void*);
template void run_hopper<6>(const HopperProblem&, void*);
template void run_hopper<8>(const HopperProblem&, void*);

// Made from the PTX of an older GPU, as a build without sm_90a would be here, the kernel has no body.
bool hopper_is_built() {
  cudaFuncAttributes attributes{};
  const auto kernel = multiply_by_wgmma<__half, HopperStage<8, 128>>;
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) return attributes.ptxVersion >= 90;
  cudaGetLastError();  // it is none of a launch
  return false;
}

}  // namespace torchcoinfer::cuda
