// Bitmap products (fast_sparse_bitmap_linear.cuh) of survivors of these widths.

#include "cuda/fast_sparse_bitmap_linear.cuh"

namespace torchcoinfer::cuda {

template const char* run_bitmap<__half, 2>(const LaunchBitmap&);
template const char* run_bitmap<__nv_bfloat16, 2>(const LaunchBitmap&);
template const char* run_bitmap<__half, 3>(const LaunchBitmap&);
template const char* run_bitmap<__nv_bfloat16, 3>(const LaunchBitmap&);
template const char* run_bitmap<__half, 4>(const LaunchBitmap&);
template const char* run_bitmap<__nv_bfloat16, 4>(const LaunchBitmap&);
template const char* run_expand<2>(const LaunchBitmap&);
template const char* run_expand<3>(const LaunchBitmap&);
template const char* run_expand<4>(const LaunchBitmap&);

}  // namespace torchcoinfer::cuda
