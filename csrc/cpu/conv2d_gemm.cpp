// Multiplies panels of patches (conv2d_panels.h) with weights that are decoded a segment at a time. AVX-512.

#include "cpu/conv2d_panels.h"

#if TORCHCOINFER_X86

#include <algorithm>

#include "cpu/conv2d_tiles.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int64_t PANEL_BYTES = 448 << 10;  // of panels at a time: they stay in L2
constexpr int64_t MOST_TILES = 8;           // of positions a task
constexpr int64_t ENOUGH_PARTS = 8;
constexpr int64_t LEAST_BLOCKS = 4;         // of a task: fewer would not be worth gathering for
constexpr int64_t PART_FLOATS = 1 << 13;    // of planes that are searched for their largest at a time

// Stores one tile of one block, without the positions that are no pixels.
TORCHCOINFER_AVX512 void store_tile(const ConvImage& image, const PositionTile& tile, const float* sums,
                                    const float* scales, const Output& out, int64_t block) {
  for (int v = 0; v < tile.vectors; ++v) {
    const PixelRun run = image.pixels(tile.first / 16 + v);
    const __m512 scale = scales ? _mm512_loadu_ps(scales + 16 * v) : _mm512_set1_ps(1.f);
    for (int64_t j = 0; j < BLOCK_N; ++j) {
      const int64_t n = block * BLOCK_N + j;
      if (n < out.first || n >= out.last) continue;
      const __m512 bias = _mm512_set1_ps(out.bias ? out.bias[n] : 0.f);
      const __m512 values = _mm512_fmadd_ps(_mm512_loadu_ps(sums + j * TILE_POSITIONS + 16 * v), scale, bias);
      store_pixels(values, run, out, n * out.column_stride);
    }
  }
}

// The largest magnitude over a group's channels, as bits: out[i] for i in [begin, end) of the planes.
TORCHCOINFER_AVX512 void largest_of_channels(const float* x, int64_t channels, int64_t step, int64_t begin,
                                             int64_t end, int32_t* out) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t i = begin; i < end; i += 16) {
    const __mmask16 mask = end - i >= 16 ? 0xffff : static_cast<__mmask16>((1 << (end - i)) - 1);
    __m512i largest = _mm512_setzero_si512();
    for (int64_t c = 0; c < channels; ++c)
      largest = _mm512_max_epi32(
          largest, _mm512_and_si512(magnitude, _mm512_maskz_loadu_epi32(mask, x + c * step + i)));
    _mm512_mask_storeu_epi32(out + i, mask, largest);
  }
}

// How the positions and the blocks of a group are cut into tasks.
struct Tasks {
  int64_t vectors, tiles, tiles_each, parts;
  int64_t first_block, blocks, blocks_each, block_parts;

  Tasks(const ConvCall& call, const ConvImage& image, int64_t lanes)
      : vectors(ceil_div(image.positions(), 16)), tiles(ceil_div(vectors, TILE_VECTORS)) {
    const int64_t fitting = PANEL_BYTES / std::max<int64_t>(lanes * TILE_POSITIONS * 4, 1);
    parts = ceil_div(tiles, std::clamp<int64_t>(fitting, 1, MOST_TILES));
    tiles_each = ceil_div(tiles, parts);
    blocks = ceil_div(call.shape.out_channels / call.shape.groups, BLOCK_N) + 1;  // a group may begin within a block
    const int64_t all = parts * call.shape.batch * call.shape.groups;
    blocks_each = std::max(LEAST_BLOCKS, blocks / std::max<int64_t>(1, ceil_div(ENOUGH_PARTS, all)));
    block_parts = ceil_div(blocks, blocks_each);
  }
  PositionTile tile(int64_t index) const {
    const int64_t first = index * vectors / tiles;
    return {16 * first, static_cast<int>((index + 1) * vectors / tiles - first)};
  }
};

// One task's workspace.
struct Workspace {
  const Buffer<int32_t> lanes, panel_sums, weights;
  const Buffer<float> scales, sums;

  Workspace(int64_t tiles, int64_t panel_lanes, const Segments& segments, int k_each)
      : lanes(tiles * panel_lanes * TILE_POSITIONS),
        panel_sums(tiles * segments.count * TILE_POSITIONS),
        weights(segments.tiles_each * TILE_K / k_each * BLOCK_N),
        scales(tiles * TILE_POSITIONS),
        sums(tiles * BLOCK_N * TILE_POSITIONS) {}
};

// Blocks [first, last) of W times tiles [begin, end) of positions.
template <int BITS, typename Kind>
void run_task(const ConvCall& call, const ConvImage& image, const PatchSource& source, const Tasks& tasks,
              int64_t begin, int64_t end, int64_t first, int64_t last, const Output& out, const Workspace& work) {
  const Segments& segments = source.segments;
  const int64_t panel_lanes = segments.tiles * TILE_K / Kind::K_EACH;
  for (int64_t i = 0; i < end - begin; ++i)
    gather_panel<Kind>(source, tasks.tile(begin + i),
                       {work.lanes.get() + i * panel_lanes * TILE_POSITIONS,
                        work.panel_sums.get() + i * segments.count * TILE_POSITIONS,
                        work.scales.get() + i * TILE_POSITIONS});
  BlockSegment weights{};
  weights.lanes = work.weights.get();
  for (int64_t block = first; block < last; ++block) {
    for (int64_t s = 0; s < segments.count; ++s) {
      decode_segment<BITS, Kind>(call.weight, segments, block, s, &weights);
      const int64_t lane = segments.begin(s) * TILE_K / Kind::K_EACH;
      const int64_t lanes = segments.end(s) * TILE_K / Kind::K_EACH - lane;
      for (int64_t i = 0; i < end - begin; ++i)
        multiply_tile<Kind>(weights, tasks.tile(begin + i).vectors,
                            work.lanes.get() + (i * panel_lanes + lane) * TILE_POSITIONS, lanes,
                            work.panel_sums.get() + (i * segments.count + s) * TILE_POSITIONS, s == 0,
                            work.sums.get() + i * BLOCK_N * TILE_POSITIONS);
    }
    for (int64_t i = 0; i < end - begin; ++i)
      store_tile(image, tasks.tile(begin + i), work.sums.get() + i * BLOCK_N * TILE_POSITIONS,
                 Kind::K_EACH == 4 ? work.scales.get() + i * TILE_POSITIONS : nullptr, out, block);
  }
}

template <int BITS, typename Kind>
void run_kind(const ConvCall& call, const ParallelFor& parallel) {
  const ConvShape& s = call.shape;
  const Segments segments(call.weight.K, call.weight.group_size);
  const ConvImage image(call, parallel);
  const int64_t extent = image.extent(), images = s.batch * s.groups, group_out = s.out_channels / s.groups;
  const Buffer<int32_t> largest(Kind::K_EACH == 4 ? images * extent : 0);
  if (Kind::K_EACH == 4) {
    const int64_t parts = ceil_div(extent, PART_FLOATS);
    parallel(images * parts, ceil_div(int64_t{4}, s.group_channels()), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i / parts, from = i % parts * PART_FLOATS;
        largest_of_channels(image.plane(at / s.groups, at % s.groups * s.group_channels()), s.group_channels(),
                            image.plane_step(), from, std::min(extent, from + PART_FLOATS),
                            largest.get() + at * extent);
      }
    });
  }
  std::vector<int64_t> taps;
  for (int64_t c = 0; c < s.group_channels(); ++c)
    for (const int64_t tap : image.taps()) taps.push_back(c * image.plane_step() + tap);
  const int64_t panel_lanes = segments.tiles * TILE_K / Kind::K_EACH;
  const Tasks tasks(call, image, panel_lanes);
  parallel(images * tasks.parts * tasks.block_parts, 1, [&](int64_t begin, int64_t end) {
    const Workspace work(tasks.tiles_each, panel_lanes, segments, Kind::K_EACH);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block_part = task % tasks.block_parts, part = task / tasks.block_parts % tasks.parts;
      const int64_t at = task / tasks.block_parts / tasks.parts, group = at % s.groups;
      const PatchSource source{image.plane(at / s.groups, group * s.group_channels()), taps,
                               largest.get() + at * extent, image.taps(), segments, image.positions(),
                               call.weight.zeros != nullptr};
      const int64_t last_block = ceil_div((group + 1) * group_out, BLOCK_N);
      const int64_t first = group * group_out / BLOCK_N + block_part * tasks.blocks_each;
      if (first >= last_block) continue;
      char* y = static_cast<char*>(call.y) + at / s.groups * s.out_channels * s.pixels() * dtype_bytes(call.dtype);
      const Output out{y, call.dtype, 1, s.pixels(), group * group_out, (group + 1) * group_out, call.bias};
      run_task<BITS, Kind>(call, image, source, tasks, part * tasks.tiles_each,
                           std::min(tasks.tiles, (part + 1) * tasks.tiles_each), first,
                           std::min(last_block, first + tasks.blocks_each), out, work);
    }
  });
}

template <int BITS>
void run_bits(const ConvCall& call, const ParallelFor& parallel) {
  if (call.activation_bits == 8) return run_kind<BITS, CodeKind>(call, parallel);
  if (call.dtype == Dtype::bfloat16) return run_kind<BITS, PairKind>(call, parallel);
  run_kind<BITS, FloatKind>(call, parallel);
}

}  // namespace

void run_conv2d_panels(const ConvCall& call, const ParallelFor& parallel) {
  if (call.weight.bits == 2) run_bits<2>(call, parallel);
  if (call.weight.bits == 3) run_bits<3>(call, parallel);
  if (call.weight.bits == 4) run_bits<4>(call, parallel);
  if (call.weight.bits == 5) run_bits<5>(call, parallel);
  if (call.weight.bits == 6) run_bits<6>(call, parallel);
  if (call.weight.bits == 8) run_bits<8>(call, parallel);
}

}  // namespace torchcoinfer::avx512

#endif
