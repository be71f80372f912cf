// Products by wgmma (fast_hopper.cuh) of codes of these widths.

#include "cuda/fast_hopper.cuh"

namespace torchcoinfer::cuda {

template void run_hopper<2>(const HopperProblem&, void*);
template void run_hopper<3>(const HopperProblem&, void*);
template void run_hopper<4>(const HopperProblem&, void*);

}  // namespace torchcoinfer::cuda
