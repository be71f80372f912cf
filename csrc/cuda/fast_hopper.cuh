// W{2,3,4,5,6,8}A16 by wgmma: the weight is operand A, from registers, x is B, from shared memory.
//
// A thread block is two warpgroups. A warp owns two neighboring n-blocks, one of either product of its warpgroup, so
// that a tile of y is 256 columns by 64 or 128 rows of x. A step is one quad of K: x of the tile and the packed codes
// arrive by bulk copies in a ring of stages; each stage has two barriers, one for its bytes and one for the warps that
// have read it.
//
//   stage   | x: columns 0 .. 63, all rows | x: 64 .. 127 | codes of n-block 0 | n-block 1 | ..
//   a warp  | 16 columns: codes -> a[0] | products of a[0] run, codes -> a[1] | products of a[1] run, codes -> a[0] | ..
//
// The group's scale meets the code before the product, so that one set of sums suffices: the weight is rounded to x's
// dtype, as `decode_weight` rounds it.
//
// The columns of a tile of 32 reach wgmma in the order in which a lane holds them: `arrange_rows` (fast_hopper.cu) has
// put x into it.

#pragma once

#include "cuda/fast_dense.cuh"
#include "cuda/fast_hopper.h"
#include "cuda/hopper.cuh"

namespace torchcoinfer::cuda {

constexpr int MOST_HOPPER_STAGES = 4;
constexpr int BARRIER_BYTES = 2 * MOST_HOPPER_STAGES * 8;
constexpr int MOST_SHARED = (227 << 10) - BARRIER_BYTES;  // of a thread block on sm_90
constexpr int HALF_QUAD_K = QUAD_K / 2;  // columns of a swizzled row
static_assert(2 * HALF_QUAD_K == SWIZZLED_ROW_BYTES, "half a quad of 16-bit values is a row");

template <int WIDTH, int TILE_ROWS>
struct HopperStage {
  static constexpr int BITS = WIDTH, ROWS = TILE_ROWS;
  static constexpr int TILE_BLOCKS = HOPPER_WARPS * HOPPER_BLOCKS;
  static constexpr int HALF_BYTES = ROWS * SWIZZLED_ROW_BYTES;
  static constexpr int X_BYTES = 2 * HALF_BYTES;
  static constexpr int CODE_BYTES = TILE_BLOCKS * static_cast<int>(QUAD_BYTES<BITS>);
  static constexpr int BYTES = X_BYTES + CODE_BYTES;
  static constexpr int SUMS = ROWS / 2;  // of a lane and n-block
  static constexpr int COUNT = MOST_SHARED / BYTES < MOST_HOPPER_STAGES ? MOST_SHARED / BYTES : MOST_HOPPER_STAGES;
  static_assert(BYTES % SWIZZLED_BLOCK_BYTES == 0, "stages begin where swizzled rows may");
  static_assert(TILE_BLOCKS <= WARP, "a lane an n-block starts its copy");
};

// The ring: stages, then a barrier a stage that its bytes are there, then one that all warps have read it.
template <typename Stage>
struct Ring {
  unsigned char* stages;
  uint64_t *filled, *read;

  __device__ __forceinline__ Ring() : stages(static_cast<unsigned char*>(dynamic_shared())) {
    filled = reinterpret_cast<uint64_t*>(stages + Stage::COUNT * Stage::BYTES);
    read = filled + MOST_HOPPER_STAGES;
  }
  __device__ __forceinline__ void start() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Stage::COUNT; ++i) start_barrier(filled + i, 1), start_barrier(read + i, HOPPER_WARPS);
      publish_shared();
    }
    __syncthreads();
  }
};

// A slot of the ring, and whether its barriers' phase is odd.
template <int COUNT>
struct Slot {
  int index = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++index == COUNT) index = 0, parity ^= 1;
  }
};

// Walks the steps ahead of the products and starts their copies, a lane an n-block; divides once a tile only. One warp
// has it.
template <typename Stage>
class Feeder {
 public:
  __device__ __forceinline__ Feeder(const HopperProblem& p, const Ring<Stage>& ring, int begin, int end)
      : p_(p), ring_(ring), left_(end - begin), tiles_(static_cast<int>(ceil_div(p.w.K, TILE_K))) {
    enter(begin / p.cut.quads);
    q_ = begin % p.cut.quads;
  }

  // The next step into the next slot, when all warps have read what was there.
  __device__ __forceinline__ void feed(int lane) {
    if (left_ == 0) return;
    --left_;
    const int tiles = tiles_ - q_ * QUAD, of_block = (tiles < QUAD ? tiles : QUAD) * OF_TILE;
    unsigned char* stage = ring_.stages + slot_.index * Stage::BYTES;
    uint64_t* filled = ring_.filled + slot_.index;
    if (lane == 0) {
      await_phase(ring_.read + slot_.index, slot_.parity ^ 1);  // at once for a slot's first step
      arrive_expecting(filled, static_cast<uint32_t>(Stage::X_BYTES + blocks_ * of_block));
      copy_bulk(stage, p_.x + (first_part_ + q_) * Stage::X_BYTES, Stage::X_BYTES, filled);
    }
    __syncwarp();
    if (lane < blocks_)
      copy_bulk(stage + Stage::X_BYTES + lane * QUAD_BYTES<Stage::BITS>,
                p_.w.packed + (lane * static_cast<int64_t>(tiles_) + first_tile_ + q_ * QUAD) * OF_TILE,
                static_cast<uint32_t>(of_block), filled);
    __syncwarp();
    slot_.advance();
    if (++q_ == p_.cut.quads) q_ = 0, enter(tile_ + 1);
  }

 private:
  static constexpr int OF_TILE = static_cast<int>(tile_bytes(Stage::BITS));

  const HopperProblem& p_;
  const Ring<Stage>& ring_;
  int left_, tiles_, tile_, q_, blocks_;
  int64_t first_part_, first_tile_;  // of x, in stages; of the codes
  Slot<Stage::COUNT> slot_;

  __device__ __forceinline__ void enter(int tile) {
    tile_ = tile;
    const int64_t block = static_cast<int64_t>(tile / p_.cut.row_tiles) * Stage::TILE_BLOCKS;
    const int64_t blocks = ceil_div(p_.w.N, BLOCK_N) - block;
    blocks_ = blocks < Stage::TILE_BLOCKS ? static_cast<int>(blocks) : Stage::TILE_BLOCKS;
    first_part_ = static_cast<int64_t>(tile % p_.cut.row_tiles) * p_.cut.quads;
    first_tile_ = block * tiles_;
  }
};

// A lane's words from shared memory that tile u of a quad needs and the tiles before it did not. left: tiles from the
// quad's first to the last of all; fewer than a quad stand alone, and those missing get codes 0.
template <int BITS>
__device__ __forceinline__ void load_tile(QuadWords<BITS>& quad, const uint8_t* from, int left, int u, int lane) {
#pragma unroll
  for (int index = 0; index < plane_count(BITS); ++index) {
    const Plane p = plane(BITS, index);
    const int of_tile = p.bits / 2, first = plane_words(BITS, index);  // words; p.bits 1: half a one
    const uint8_t* alone = from + u * tile_bytes(BITS) + p.offset + lane * 2 * p.bits;
    if (left >= QUAD) {
      const uint8_t* of_plane = from + QUAD * p.offset;
      if (p.bits == 1 && u == 0) {
        const uint2 pair = *reinterpret_cast<const uint2*>(of_plane + 8 * lane);
        quad.words[first] = pair.x, quad.words[first + 1] = pair.y;
      } else if (p.bits > 1 && u * of_tile % 4 == 0) {
        const uint4 four = *(reinterpret_cast<const uint4*>(of_plane + u * of_tile / 4 * ROUND_BYTES) + lane);
        uint32_t* words = quad.words + first + u * of_tile;
        words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
      }
    } else if (p.bits == 1) {
      const uint32_t both = u < left ? *reinterpret_cast<const uint16_t*>(alone) : 0;
      const uint32_t halves = ((both & 0xffu) | (both & 0xff00u) << 8) << 8 * (u % 2);
      quad.words[first + u / 2] = u % 2 ? quad.words[first + u / 2] | halves : halves;
    } else {
#pragma unroll
      for (int word = 0; word < of_tile; ++word)
        quad.words[first + u * of_tile + word] = u < left ? reinterpret_cast<const uint32_t*>(alone)[word] : 0;
    }
  }
}

// --- weights: (code - zero point) * scale, rounded to T

// A scale as two values of T whose sum it is, the higher one in the low half: another dtype may have more digits.
template <typename T>
__device__ __forceinline__ uint32_t split_scale(float scale) {
  const float high = floats_of<T>(pair_of<T>(scale, 0.f)).x;
  return pair_of<T>(high, scale - high);
}

template <typename T>
__device__ __forceinline__ uint32_t scaled_pair(uint32_t codes, uint32_t scale) {
  const auto pair = same_bits<PairOf<T>>(codes);
  const auto high = same_bits<PairOf<T>>(__byte_perm(scale, 0, 0x1010));
  const auto low = same_bits<PairOf<T>>(__byte_perm(scale, 0, 0x3232));
  return same_bits<uint32_t>(__hfma2(pair, high, __hmul2(pair, low)));
}

// QuadGrid with split scales and zero points as `less_zero` takes them, in the same lanes.
template <typename T, int BITS>
__device__ __forceinline__ void prepare_grid(QuadGrid& grid, const DenseMatrix& w, int of_quad) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (2 * i >= of_quad) break;
    grid.scale[i] = split_scale<T>(stored_scale(grid.scale[i], w.scale_type));
    grid.zero[i] = zero_operand<T, BITS>(w.zeros ? static_cast<int>(grid.zero[i]) : implicit_zero(BITS));
  }
}

// What a lane needs of the group at hand: its two rows in each n-block.
template <int BLOCKS>
struct GroupGrid {
  uint32_t scale[BLOCKS][2], zero[BLOCKS][2];

  __device__ __forceinline__ void set(const QuadGrid (&grid)[BLOCKS], int group, int lane) {
#pragma unroll
    for (int i = 0; i < BLOCKS; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        scale[i][h] = of_row(grid[i].scale, group, h, lane);
        zero[i][h] = of_row(grid[i].zero, group, h, lane);
      }
  }
};

// --- sums

// First row and column of a lane's sums in n-block i of a warp: value 4j + v is row + 8j + v % 2, column + 8 (v / 2).
struct HopperTarget {
  int row, column;
  __device__ __forceinline__ HopperTarget(const HopperProblem& p, int tile, int warp, int lane, int i) {
    row = tile % p.cut.row_tiles * p.cut.tile_rows + 2 * (lane % 4);
    column = ((tile / p.cut.row_tiles * HOPPER_WARPS + warp) * HOPPER_BLOCKS + i) * BLOCK_N + lane / 4;
  }
};

__device__ __forceinline__ float of_bias(const HopperProblem& p, int column) {
  return p.bias && column < p.w.N ? p.bias[column] : 0.f;
}

// What a warp does: its n-blocks of every tile of the thread block.
template <typename T, typename Stage>
class HopperWarp {
 public:
  __device__ __forceinline__ HopperWarp(const HopperProblem& p, const Ring<Stage>& ring, int begin)
      : p_(p), ring_(ring), steps_(grid_steps(p.w)), group_tiles_(group_tiles_of(p.w.group_size)),
        warp_(threadIdx.x / WARP), lane_(threadIdx.x % WARP), tiles_(static_cast<int>(ceil_div(p.w.K, TILE_K))),
        q_(begin % p.cut.quads) {
    enter(begin / p.cut.quads);
    load_grid(grid_);
    prepare();
  }

  // One step; `adds`: not the first of its sums. Calls feed() where the stage before has most likely been read by all.
  template <typename Feed>
  __device__ __forceinline__ void multiply(bool adds, const Feed& feed) {
    const unsigned char* stage = ring_.stages + slot_.index * Stage::BYTES;
    const uint64_t x = swizzled_rows(shared_address(stage));
    const int left = tiles_ - q_ * QUAD;
    advance();
    QuadGrid next[BLOCKS];
    load_grid(next);  // lands while this step is multiplied
    await_phase(ring_.filled + slot_.index, slot_.parity);
    QuadWords<BITS> quad[BLOCKS];
    GroupGrid<BLOCKS> group;
    int number = 0;
#pragma unroll
    for (int k = 0; k < 2 * QUAD; ++k) {
      const int u = k / 2, s = k % 2;
      if (s == 0) load_codes(quad, stage + Stage::X_BYTES, left, u);
      if (s == 0 && (u & (group_tiles_ - 1)) == 0) group.set(grid_, number++, lane_);
      wait_products<1>();  // so those of a_[k % 2] are done
      if (k == 1) release();
#pragma unroll
      for (int i = 0; i < BLOCKS; ++i) {
        uint32_t(&a)[4] = a_[k % 2][i];
        weight_fragment<T, BITS>(a, quad[i], u, s, group.zero[i]);
#pragma unroll
        for (int r = 0; r < 4; ++r) a[r] = scaled_pair<T>(a[r], group.scale[i][r % 2]);
      }
      fence_products();
      const uint64_t columns = x + (u / 2 * Stage::HALF_BYTES + (2 * (u % 2) + s) * 32) / LANE_BYTES;
#pragma unroll
      for (int i = 0; i < BLOCKS; ++i) multiply_rows<T>(sums_[i], a_[k % 2][i], columns, adds || k);
      commit_products();
      if (k == FEEDS_AT) feed();
    }
    before_ = ring_.read + slot_.index;
    slot_.advance();
#pragma unroll
    for (int i = 0; i < BLOCKS; ++i) grid_[i] = next[i];
    prepare();
  }

  // The sums of a tile into y, or of a part of its steps into `partials`, lane by lane.
  __device__ __forceinline__ void store(int tile, float* partials) {
    wait_products<0>();
#pragma unroll
    for (int i = 0; i < BLOCKS; ++i) {
      keep_sums(sums_[i]);
      if (partials)
        store_part(sums_[i], partials + (warp_ * BLOCKS + i) * Stage::SUMS * WARP + lane_);
      else
        store_values(sums_[i], HopperTarget(p_, tile, warp_, lane_, i));
    }
  }

 private:
  static constexpr int BITS = Stage::BITS, BLOCKS = HOPPER_BLOCKS;
  static constexpr int FEEDS_AT = 4;

  const HopperProblem& p_;
  const Ring<Stage>& ring_;
  const GridSteps steps_;
  const int group_tiles_, warp_, lane_, tiles_;
  int tile_, q_;  // of the step whose scales are loaded next
  int64_t place_[HOPPER_BLOCKS];  // of scales and zero points of the tile's first group
  Slot<Stage::COUNT> slot_;
  uint64_t* before_ = nullptr;  // `read` of the stage before
  QuadGrid grid_[BLOCKS];
  uint32_t a_[2][BLOCKS][4];
  float sums_[BLOCKS][Stage::SUMS];

  // Beyond the last n-block, or tile, those of the last: nobody uses them.
  __device__ __forceinline__ void enter(int tile) {
    tile_ = tile;
    const int64_t last = ceil_div(p_.w.N, BLOCK_N) - 1;
#pragma unroll
    for (int i = 0; i < BLOCKS; ++i) {
      const int64_t block = (static_cast<int64_t>(tile / p_.cut.row_tiles) * HOPPER_WARPS + warp_) * BLOCKS + i;
      place_[i] = (block < last ? block : last) * steps_.groups * BLOCK_N + lane_;
    }
  }

  __device__ __forceinline__ void advance() {
    if (++q_ == p_.cut.quads) q_ = 0, enter(tile_ + 1);
  }

  // Scales and zero points of a quad: values 32 j + lane of its up to 4 x 16.
  __device__ __forceinline__ void load_grid(QuadGrid (&grid)[BLOCKS]) const {
    const int first = q_ * steps_.step, left = steps_.groups - first;
    const int count = (steps_.of_quad < left ? steps_.of_quad : left) * BLOCK_N;
    const bool wide = p_.w.scale_type == Element::float32;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (2 * j >= steps_.of_quad) break;
      const bool wanted = WARP * j + lane_ < count;
#pragma unroll
      for (int i = 0; i < BLOCKS; ++i) {
        const int64_t at = place_[i] + first * BLOCK_N + WARP * j;
        grid[i].scale[j] = grid[i].zero[j] = 0;
        if (wanted && wide) grid[i].scale[j] = __ldg(static_cast<const uint32_t*>(p_.w.scales) + at);
        if (wanted && !wide) grid[i].scale[j] = __ldg(static_cast<const uint16_t*>(p_.w.scales) + at);
        if (wanted && p_.w.zeros) grid[i].zero[j] = __ldg(p_.w.zeros + at);
      }
    }
  }

  __device__ __forceinline__ void prepare() {
#pragma unroll
    for (int i = 0; i < BLOCKS; ++i) prepare_grid<T, BITS>(grid_[i], p_.w, steps_.of_quad);
  }

  __device__ __forceinline__ void load_codes(QuadWords<BITS> (&quad)[BLOCKS], const uint8_t* codes, int left,
                                             int u) const {
#pragma unroll
    for (int i = 0; i < BLOCKS; ++i)
      load_tile<BITS>(quad[i], codes + (warp_ * BLOCKS + i) * QUAD_BYTES<BITS>, left, u, lane_);
  }

  // The products of the step before are done: its stage may be filled again.
  __device__ __forceinline__ void release() const {
    __syncwarp();  // all lanes have read their codes
    if (before_ && lane_ == 0) arrive(before_);
  }

  __device__ __forceinline__ void store_part(const float (&sums)[Stage::SUMS], float* place) const {
#pragma unroll
    for (int v = 0; v < Stage::SUMS; ++v) place[v * WARP] = sums[v];
  }

  __device__ __forceinline__ void store_values(const float (&sums)[Stage::SUMS], const HopperTarget& target) const {
    T* y = static_cast<T*>(p_.y) + target.row * p_.w.N + target.column;
    const int rows = static_cast<int>(p_.rows) - target.row, columns = static_cast<int>(p_.w.N) - target.column;
    const float bias[2] = {of_bias(p_, target.column), of_bias(p_, target.column + 8)};
#pragma unroll
    for (int j = 0; j < Stage::ROWS / 8; ++j) {
#pragma unroll
      for (int v = 0; v < 4; ++v)
        if (8 * j + v % 2 < rows && 8 * (v / 2) < columns)
          y[v % 2 * p_.w.N + 8 * (v / 2)] = T(sums[4 * j + v] + bias[v / 2]);
      y += 8 * p_.w.N;
    }
  }
};

template <typename T, typename Stage>
__global__ void __launch_bounds__(HOPPER_THREADS, 1) multiply_by_wgmma(HopperProblem p) {
#if TORCHCOINFER_SM90A
  const Ring<Stage> ring;
  ring.start();
  admit_kernel_after();
  await_kernel_before();  // it arranges x
  const int begin = p.cut.begin(blockIdx.x), end = p.cut.begin(blockIdx.x + 1);
  Feeder<Stage> feeder(p, ring, begin, end);
  const bool feeds = threadIdx.x < WARP;
#pragma unroll 1
  for (int i = 0; i < Stage::COUNT && feeds; ++i) feeder.feed(threadIdx.x);
  HopperWarp<T, Stage> warp(p, ring, begin);
#pragma unroll 1
  for (int first = begin; first < end;) {
    const int tile = first / p.cut.quads, after = (tile + 1) * p.cut.quads, last = after < end ? after : end;
#pragma unroll 1
    for (int step = first; step < last; ++step)
      warp.multiply(step != first, [&] {
        if (feeds && step != begin) feeder.feed(threadIdx.x);
      });
    const bool whole = first == tile * p.cut.quads && last == after;
    const int64_t part = 2 * static_cast<int64_t>(blockIdx.x) + (first != begin);
    warp.store(tile, whole ? nullptr : p.partials + part * p.cut.tile_values());
    first = last;
  }
#endif
}

template <typename T, typename Stage>
void launch_hopper(const HopperProblem& p, void* stream) {
  constexpr size_t SHARED_BYTES = Stage::COUNT * Stage::BYTES + BARRIER_BYTES;
  launch_early(multiply_by_wgmma<T, Stage>, p.cut.blocks, HOPPER_THREADS, SHARED_BYTES, stream, p);
}

template <int BITS>
void run_hopper(const HopperProblem& p, void* stream) {
  const bool small = p.cut.tile_rows == 64;
  if (p.type == Element::float16)
    (small ? launch_hopper<__half, HopperStage<BITS, 64>> : launch_hopper<__half, HopperStage<BITS, 128>>)(p, stream);
  else
    (small ? launch_hopper<__nv_bfloat16, HopperStage<BITS, 64>> : launch_hopper<__nv_bfloat16, HopperStage<BITS, 128>>)(
        p, stream);
}

}  // namespace torchcoinfer::cuda
