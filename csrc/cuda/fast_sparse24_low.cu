// 2:4 products (fast_sparse24.cuh) of survivors of these widths.

#include "cuda/fast_sparse24.cuh"

namespace torchcoinfer::cuda {

template const char* run_sparse24<__half, 2>(const Launch24&);
template const char* run_sparse24<__nv_bfloat16, 2>(const Launch24&);
template const char* run_sparse24<__half, 3>(const Launch24&);
template const char* run_sparse24<__nv_bfloat16, 3>(const Launch24&);
template const char* run_sparse24<__half, 4>(const Launch24&);
template const char* run_sparse24<__nv_bfloat16, 4>(const Launch24&);

}  // namespace torchcoinfer::cuda
