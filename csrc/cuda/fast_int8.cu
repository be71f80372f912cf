// W{2,3,4,5,6,8}A8: codes of x and of the weight as bytes, exact sums in int32 a group, one float32 product with its
// scale. The codes are unsigned, the zero point z of a row leaves by sum((code - z) x) = sum(code x) - z sum(x).

#include "cuda/fast_gemm.cuh"

namespace torchcoinfer::cuda {
namespace {

template <int WIDTH, int TILES>
struct ByteMath {
  static constexpr int BITS = WIDTH, MT = TILES, ROW_BYTES = QUAD_K;
  static constexpr int SUM_BYTES = QUAD * TILE_ROWS<MT> * static_cast<int>(sizeof(int32_t));  // of groups of one tile

  // Rows begin 128 bytes apart, in the same banks: four of them, 32 bytes each, are read together.
  __device__ static int swizzled(int row, int chunk) {
    return chunk ^ row % 4 << 1;
  }

  __device__ __forceinline__ static void fetch_sums(unsigned char* target, const GemmProblem& p, int64_t row,
                                                    int64_t q) {
    constexpr int CHUNKS = TILE_ROWS<MT> / 4;  // of four sums
    const int groups = QUAD / group_tiles_of(p.w.group_size);
    for (int at = threadIdx.x; at < groups * CHUNKS; at += GEMM_THREADS) {
      const int64_t group = q * groups + at / CHUNKS;
      copy_async(target + at * LANE_BYTES, p.sums + group * p.sum_rows + row + at % CHUNKS * 4);
    }
  }

  struct State {
    int group[WARP_BLOCKS][MT][4];
    float total[WARP_BLOCKS][MT][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
      for (int i = 0; i < WARP_BLOCKS; ++i)
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
          for (int v = 0; v < 4; ++v) group[i][m][v] = 0, total[i][m][v] = 0.f;
    }
    __device__ __forceinline__ float value(int i, int m, int v) const {
      return total[i][m][v];
    }

    // sums: of the columns of x in this group, for the warp's rows of it
    __device__ __forceinline__ void close_group(const QuadGrid (&grid)[WARP_BLOCKS], const DenseMatrix& w, int of_quad,
                                                const int32_t* sums, int lane) {
#pragma unroll
      for (int i = 0; i < WARP_BLOCKS; ++i) {
        float scale[2];
        int zero[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          scale[h] = stored_scale(of_row(grid[i].scale, of_quad, h, lane), w.scale_type);
          zero[h] = implicit_zero(BITS);
          if (w.zeros) zero[h] = static_cast<int>(of_row(grid[i].zero, of_quad, h, lane));
        }
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          const int2 of_columns = *reinterpret_cast<const int2*>(sums + m * 8 + 2 * (lane % 4));
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            const int exact = group[i][m][v] - zero[v / 2] * (v % 2 ? of_columns.y : of_columns.x);
            total[i][m][v] += scale[v / 2] * static_cast<float>(exact);
            group[i][m][v] = 0;
          }
        }
      }
    }

    __device__ __forceinline__ void multiply(const unsigned char* stage, const QuadGrid (&grid)[WARP_BLOCKS],
                                             const GemmProblem& p, int q, int warp, int lane) {
      const int left = static_cast<int>(ceil_div(p.w.K, TILE_K)) - q * QUAD, first_row = warp / N_WARPS * MT * 8;
      const int group_tiles = group_tiles_of(p.w.group_size);
      QuadWords<BITS> quad[WARP_BLOCKS];
      load_stage_codes<BITS>(quad, stage + Stage<ByteMath>::X_BYTES, left, warp, lane);
      const unsigned char* rows = stage + (first_row + lane / 4) * ROW_BYTES;
      const unsigned char* after_codes = stage + Stage<ByteMath>::X_BYTES + Stage<ByteMath>::CODE_BYTES;
      const auto* sums = reinterpret_cast<const int32_t*>(after_codes);
      int of_quad = 0;
#pragma unroll
      for (int u = 0; u < QUAD; ++u) {
        uint32_t a[WARP_BLOCKS][4];
#pragma unroll
        for (int i = 0; i < WARP_BLOCKS; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) a[i][r] = code_bytes<BITS>(quad[i], u, r % 2, r / 2);
        const int byte = swizzled(lane / 4, 2 * u + lane % 4 / 2) * LANE_BYTES + lane % 2 * 8;
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          const uint2 two = *reinterpret_cast<const uint2*>(rows + m * 8 * ROW_BYTES + byte);
          const uint32_t b[2] = {two.x, two.y};
#pragma unroll
          for (int i = 0; i < WARP_BLOCKS; ++i) mma_16832<uint8_t, int8_t>(group[i][m], a[i], b);
        }
        if ((u + 1) & (group_tiles - 1)) continue;
        close_group(grid, p.w, of_quad, sums + of_quad * TILE_ROWS<MT> + first_row, lane);
        ++of_quad;
      }
    }
  };
};

template <typename Math>
__global__ void __launch_bounds__(GEMM_THREADS, 1) gemm(GemmProblem p) {
  run_gemm<Math>(p);
}

template <int BITS>
void run(const GemmProblem& p, void* stream) {
  using Small = ByteMath<BITS, 4>;
  using Large = ByteMath<BITS, 8>;
  if (small_tiles(p.rows))
    launch_gemm<Small>(gemm<Small>, p, stream);
  else
    launch_gemm<Large>(gemm<Large>, p, stream);
}

}  // namespace

int64_t byte_scratch(const DenseMatrix& w, int64_t rows) {
  GemmProblem p{};
  p.w = w, p.rows = rows;
  return small_tiles(rows) ? partial_count<ByteMath<2, 4>>(p) : partial_count<ByteMath<2, 8>>(p);
}

const char* byte_linear(const DenseMatrix& w, const int8_t* codes, const int32_t* sums, int64_t sum_rows,
                        const float* row_scales, int64_t rows, const float* bias, void* y, Element type, float* scratch,
                        void* stream) {
  if (rows == 0 || w.N == 0) return nullptr;
  GemmProblem p{};
  p.w = w, p.x = reinterpret_cast<const unsigned char*>(codes), p.row_bytes = ceil_div(w.K, QUAD_K) * QUAD_K;
  p.rows = rows, p.sums = sums, p.sum_rows = sum_rows, p.row_scales = row_scales;
  p.bias = bias, p.y = y, p.type = type, p.partials = scratch;
  const auto kernel = w.bits == 2   ? run<2>
                      : w.bits == 3 ? run<3>
                      : w.bits == 4 ? run<4>
                      : w.bits == 5 ? run<5>
                      : w.bits == 6 ? run<6>
                                    : run<8>;
  kernel(p, stream);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
