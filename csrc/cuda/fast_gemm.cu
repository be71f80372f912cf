// W{2,3,4,5,6,8}A16 for more rows than the GEMV serves: codes become fp16 or bf16 in registers, x waits in shared
// memory.

#include "cuda/fast_gemm.cuh"

namespace torchcoinfer::cuda {
namespace {

template <typename T, int WIDTH, int TILES>
struct HalfMath {
  static constexpr int BITS = WIDTH, MT = TILES, ROW_BYTES = 2 * QUAD_K, SUM_BYTES = 0;

  // Rows of a pair begin 256 bytes apart, in the same banks: the odd one has its halves of 64 bytes exchanged.
  __device__ static int swizzled(int row, int chunk) {
    return chunk ^ row % 2 << 2;
  }

  struct State {
    Sums<MT> sums[WARP_BLOCKS];

    __device__ __forceinline__ void clear() {
#pragma unroll
      for (int i = 0; i < WARP_BLOCKS; ++i) cuda::clear(sums[i]);
    }
    __device__ __forceinline__ float value(int i, int m, int v) const {
      return sums[i].total[m][v];
    }
    __device__ __forceinline__ void multiply(const unsigned char* stage, const QuadGrid (&grid)[WARP_BLOCKS],
                                             const GemmProblem& p, int q, int warp, int lane) {
      const int left = static_cast<int>(ceil_div(p.w.K, TILE_K)) - q * QUAD;
      QuadWords<BITS> quad[WARP_BLOCKS];
      load_stage_codes<BITS>(quad, stage + Stage<HalfMath>::X_BYTES, left, warp, lane);
      const unsigned char* rows = stage + (warp / N_WARPS * MT * 8 + lane / 4) * ROW_BYTES;
      const auto values = [=](int u, int m) {
        const int chunk = swizzled(lane / 4, 4 * u + lane % 4);
        return *reinterpret_cast<const uint4*>(rows + m * 8 * ROW_BYTES + chunk * LANE_BYTES);
      };
      multiply_quad<T, BITS, MT>(sums, quad, grid, p.w, values, lane);
    }
  };
};

template <typename Math>
__global__ void __launch_bounds__(GEMM_THREADS, 1) gemm(GemmProblem p) {
  run_gemm<Math>(p);
}

template <typename T, int BITS>
void run(const GemmProblem& p, void* stream) {
  using Small = HalfMath<T, BITS, 4>;
  using Large = HalfMath<T, BITS, 8>;
  if (small_tiles(p.rows))
    launch_gemm<Small>(gemm<Small>, p, stream);
  else
    launch_gemm<Large>(gemm<Large>, p, stream);
}

template <typename T>
void run_bits(const GemmProblem& p, void* stream) {
  const auto kernel = p.w.bits == 2   ? run<T, 2>
                      : p.w.bits == 3 ? run<T, 3>
                      : p.w.bits == 4 ? run<T, 4>
                      : p.w.bits == 5 ? run<T, 5>
                      : p.w.bits == 6 ? run<T, 6>
                                      : run<T, 8>;
  kernel(p, stream);
}

}  // namespace

int64_t gemm_scratch(const DenseMatrix& w, int64_t rows) {
  GemmProblem p{};
  p.w = w, p.rows = rows;
  return small_tiles(rows) ? partial_count<HalfMath<__half, 2, 4>>(p) : partial_count<HalfMath<__half, 2, 8>>(p);
}

const char* gemm_linear(const DenseMatrix& w, const void* x, Element type, int64_t x_columns, int64_t rows,
                        const float* bias, void* y, float* scratch, void* stream) {
  if (rows == 0 || w.N == 0) return nullptr;
  GemmProblem p{};
  p.w = w, p.x = static_cast<const unsigned char*>(x), p.row_bytes = 2 * x_columns, p.rows = rows;
  p.bias = bias, p.y = y, p.type = type, p.partials = scratch;
  (type == Element::float16 ? run_bits<__half> : run_bits<__nv_bfloat16>)(p, stream);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
