// Which cut of a 2:4 product is fastest, and which kernel takes it.

#include "cuda/fast_sparse24.h"

#include <algorithm>

#include "cuda/fragments.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int FEW_ROWS = SPARSE24_CODE_ROWS;  // two fragments
constexpr int BLOCK_ROWS = 64;  // eight
constexpr int64_t RESERVED_SHARED = 1 << 10;  // of a thread block
constexpr int MOST_SPLITS = 8;
// Clocks of an H100, from its data sheet and published measurements; they rank cuts, no more.
constexpr double DRAM_BYTES = 14;     // a clock and multiprocessor
constexpr double L2_BYTES = 45;       // the same, from L2
constexpr double LATENCY_CLOCKS = 1300;
constexpr double START_CLOCKS = 1500;  // of a thread block until its first product
constexpr double SPLIT_CLOCKS = 3500;  // of one more kernel
constexpr double PRODUCT_CLOCKS = 2;   // of an mma.sp
// Instructions of a warp's quad, by the disassembly: two n-blocks, and each fragment of x; and those issued a clock.
constexpr double QUAD_INSTRUCTIONS = 260, CODE_INSTRUCTIONS = 420, FRAGMENT_INSTRUCTIONS = 12, ISSUED = 2.5;
constexpr double HIDDEN_SHARE = 0.1;

int64_t slot_bytes(int bits) {
  const int64_t grid = bits ? QUAD * BLOCK_N * 3 : 0;
  return QUAD * (bits ? TILE_CHUNKS * chunk_bytes(bits) : TILE_CHUNKS * CHUNK * 2) + QUAD * INDEX_BYTES + grid;
}

// Fills in what follows from the warps and splits; the bytes that a stage of it takes.
int64_t finish(const SparseMatrix& w, int64_t rows, Cut24* cut) {
  cut->k_warps = WARPS / (cut->m_warps * cut->n_warps);
  cut->groups = ceil_div(ceil_div(w.N, BLOCK_N), cut->n_warps * COLUMNS_AT_ONCE);
  cut->quads = ceil_div(ceil_div(ceil_div(w.K, TILE_K), QUAD), cut->splits);
  const int64_t high = rows < cut->rows_of_block() ? rows : cut->rows_of_block();
  const int64_t slots = cut->n_warps * cut->k_warps * COLUMNS_AT_ONCE;
  const int64_t stage = high * cut->row_stride() * 2 + slots * slot_bytes(w.bits);
  const int64_t out = cut->k_warps * high * (cut->n_warps * COLUMNS_AT_ONCE * BLOCK_N + OUT_PAD) * 4;
  cut->shared_bytes = STAGES * stage > out ? STAGES * stage : out;
  return stage;
}

// Estimated clocks of a cut: the slowest of memory, one multiprocessor's copies, products and instructions, and starts.
double clocks(const SparseMatrix& w, int64_t rows, const Cut24& cut, int64_t stage, int64_t processors) {
  const auto real = [](int64_t value) { return static_cast<double>(value); };
  const int64_t high = rows < cut.rows_of_block() ? rows : cut.rows_of_block();
  const int64_t thread_blocks = cut.groups * ceil_div(rows, cut.rows_of_block()) * cut.splits;
  const int64_t quads = ceil_div(ceil_div(w.K, TILE_K), QUAD), steps = ceil_div(cut.quads, cut.k_warps);
  const int64_t each = ceil_div(thread_blocks, processors);  // of one multiprocessor, in turn or at once
  const bool two_fit = cut.m_fragments == 2 && 2 * (cut.shared_bytes + RESERVED_SHARED) <= shared_bytes();
  const int64_t at_once = each > 1 && two_fit ? 2 : 1;
  // no more arrives than is under way, in the time that it takes
  const double under_way = real((STAGES - 1) * stage * at_once) / LATENCY_CLOCKS;
  const double copies = real(each * steps * stage) / std::min(L2_BYTES, under_way);
  const double products = real(each * steps * QUAD * COLUMNS_AT_ONCE * ceil_div(high, 8) * WARPS / cut.m_warps);
  const double of_quad = w.bits ? CODE_INSTRUCTIONS : QUAD_INSTRUCTIONS;
  const double fragments = real(ceil_div(ceil_div(high, 8), cut.m_warps));
  const double issue = real(each * steps * WARPS) * (of_quad + FRAGMENT_INSTRUCTIONS * fragments) / ISSUED;
  const double weights = real(ceil_div(w.N, BLOCK_N) * quads * slot_bytes(w.bits)) / (DRAM_BYTES * real(processors));
  const double parts = real(2 * cut.splits * rows * w.N * 4) / (L2_BYTES * real(processors));
  const double busy = std::max({weights, copies, products * PRODUCT_CLOCKS, issue});
  // what hides behind the slowest costs a little too: of two cuts that memory bounds, the one with less to do elsewhere
  const double hidden = HIDDEN_SHARE * (weights + copies + products * PRODUCT_CLOCKS + issue);
  return busy + hidden + real(ceil_div(each, at_once)) * START_CLOCKS + (cut.splits > 1 ? SPLIT_CLOCKS + parts : 0);
}

// The fastest cut; none, n_warps 0, where the device has too little shared memory for any.
Cut24 cut_for(const SparseMatrix& w, int64_t rows) {
  const int64_t count = processor_count(), most = shared_bytes();
  const int64_t quads = ceil_div(ceil_div(w.K, TILE_K), QUAD);
  Cut24 best{};
  double least = 0;
  for (int n_warps = rows > BLOCK_ROWS ? WARPS / 2 : WARPS; n_warps; n_warps /= 2)
    for (int splits = 1; splits <= MOST_SPLITS && splits <= quads; ++splits) {
      Cut24 cut{rows <= FEW_ROWS ? 2 : 8, rows > BLOCK_ROWS ? 2 : 1, n_warps, 0, splits, 0, 0, 0};
      const int64_t stage = finish(w, rows, &cut);
      if (cut.shared_bytes > most) continue;
      const double cost = clocks(w, rows, cut, stage, count);
      if (best.n_warps && cost >= least) continue;
      best = cut;
      least = cost;
    }
  return best;
}

template <typename T>
const char* run(const Launch24& all) {
  switch (all.w.bits) {
    case 0:
      return run_sparse24<T, 0>(all);
    case 2:
      return run_sparse24<T, 2>(all);
    case 3:
      return run_sparse24<T, 3>(all);
    case 4:
      return run_sparse24<T, 4>(all);
    case 5:
      return run_sparse24<T, 5>(all);
    case 6:
      return run_sparse24<T, 6>(all);
    default:
      return run_sparse24<T, 8>(all);
  }
}

bool is_aligned(const void* place) {
  return reinterpret_cast<uintptr_t>(place) % LANE_BYTES == 0;
}

}  // namespace

bool sparse24_serves(const SparseMatrix& w, Element type, int64_t rows) {
  if (!w.paired || w.layout != DEVICE_LAYOUT || type == Element::float32 || w.K == 0 || w.N == 0) return false;
  if (!is_aligned(w.values) || !is_aligned(w.index) || !is_aligned(w.scales) || !is_aligned(w.zeros)) return false;
  if (!w.bits && w.value_type != type) return false;
  if (w.bits && w.scale_type != type && w.scale_type != Element::float16) return false;  // others would be rounded
  return cut_for(w, rows).n_warps > 0;
}

int64_t sparse24_scratch(const SparseMatrix& w, int64_t rows) {
  const Cut24 cut = cut_for(w, rows);
  return cut.splits > 1 ? cut.splits * rows * w.N : 0;
}

const char* fast_sparse24(const SparseMatrix& w, const void* x, int64_t x_columns, int64_t rows, const float* row_scales,
                          const float* bias, void* y, Element type, float* scratch, void* stream) {
  if (rows == 0) return nullptr;
  const Launch24 all{w, cut_for(w, rows), x, x_columns, rows, row_scales, bias, y, type, scratch, stream};
  return type == Element::float16 ? run<__half>(all) : run<__nv_bfloat16>(all);
}

}  // namespace torchcoinfer::cuda
