// 2:4 products (fast_sparse24.cuh) of survivors of these widths.

#include "cuda/fast_sparse24.cuh"

namespace torchcoinfer::cuda {

template const char* run_sparse24<__half, 5>(const Launch24&);
template const char* run_sparse24<__nv_bfloat16, 5>(const Launch24&);
template const char* run_sparse24<__half, 6>(const Launch24&);
template const char* run_sparse24<__nv_bfloat16, 6>(const Launch24&);
template const char* run_sparse24<__half, 8>(const Launch24&);
template const char* run_sparse24<__nv_bfloat16, 8>(const Launch24&);

}  // namespace torchcoinfer::cuda
