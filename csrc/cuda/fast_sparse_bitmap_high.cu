// Bitmap products (fast_sparse_bitmap_linear.cuh) of survivors of these widths.

#include "cuda/fast_sparse_bitmap_linear.cuh"

namespace torchcoinfer::cuda {

template const char* run_bitmap<__half, 5>(const LaunchBitmap&);
template const char* run_bitmap<__nv_bfloat16, 5>(const LaunchBitmap&);
template const char* run_bitmap<__half, 6>(const LaunchBitmap&);
template const char* run_bitmap<__nv_bfloat16, 6>(const LaunchBitmap&);
template const char* run_bitmap<__half, 8>(const LaunchBitmap&);
template const char* run_bitmap<__nv_bfloat16, 8>(const LaunchBitmap&);
template const char* run_expand<5>(const LaunchBitmap&);
template const char* run_expand<6>(const LaunchBitmap&);
template const char* run_expand<8>(const LaunchBitmap&);

}  // namespace torchcoinfer::cuda
