// 2:4 products (fast_sparse24.cuh) of survivors of these widths.

#include "cuda/fast_sparse24.cuh"

namespace torchcoinfer::cuda {

template const char* run_sparse24<__half, 0>(const Launch24&);
template const char* run_sparse24<__nv_bfloat16, 0>(const Launch24&);

}  // namespace torchcoinfer::cuda
