#include "cpu/conv2d_panels.h"

#include "cpu/isa.h"

#if TORCHCOINFER_X86

#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/gemm_avx512.h"
#include "cpu/store_avx512.h"

namespace torchcoinfer::avx512 {
namespace {

constexpr int64_t PANEL_BYTES = 512 << 10;  // of gathered patches at a time: they stay in L2
constexpr int64_t LEAST_PIXELS = 24;
constexpr int64_t MOST_PIXELS = 240;
constexpr float CODE_TOP = 127.f;

// The batch as zero-padded float images [B, C, padded height, padded width].
struct Padded {
  const float* values;
  int64_t width;
  int64_t plane;
};

// Pixels of one row tile that lie in one output row: `count` pixels from tile row `first` on, whose patches start at
// `offset` of their channel's padded plane.
struct Run {
  int64_t first;
  int64_t count;
  int64_t offset;
};

int64_t find_runs(const ConvShape& s, int64_t padded_width, int64_t pixel, int64_t height, Run* runs) {
  int64_t count = 0;
  for (int64_t done = 0; done < height;) {
    const int64_t row = (pixel + done) / s.out_width, column = (pixel + done) % s.out_width;
    const int64_t length = std::min(height - done, s.out_width - column);
    runs[count++] = {done, length, row * s.stride[0] * padded_width + column * s.stride[1]};
    done += length;
  }
  return count;
}

// One row tile as floats: panel[K padded][height].
void gather_tile(const ConvShape& s, const Padded& image, const float* x, int64_t pixel, int64_t height,
                 int64_t padded_columns, float* panel) {
  Run runs[RowTiles::MOST];
  const int64_t run_count = find_runs(s, image.width, pixel, height, runs);
  for (int64_t c = 0; c < s.group_channels(); ++c)
    for (int64_t i = 0; i < s.kernel[0]; ++i)
      for (int64_t j = 0; j < s.kernel[1]; ++j, panel += height) {
        const float* tap = x + c * image.plane + i * s.dilation[0] * image.width + j * s.dilation[1];
        for (int64_t r = 0; r < run_count; ++r) {
          const float* source = tap + runs[r].offset;
          float* out = panel + runs[r].first;
          for (int64_t m = 0; m < runs[r].count; ++m) out[m] = source[m * s.stride[1]];
        }
      }
  std::fill(panel, panel + (padded_columns - s.columns()) * height, 0.f);
}

TORCHCOINFER_AVX512_INLINE __mmask16 lanes_mask(int64_t height) {
  return static_cast<__mmask16>((1 << height) - 1);
}

// sums[m][segment] of a float panel.
TORCHCOINFER_AVX512 void panel_sums(const float* panel, int64_t height, const Segments& segments, float* sums) {
  const __mmask16 mask = lanes_mask(height);
  for (int64_t s = 0; s < segments.count; ++s) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t k = segments.begin(s) * TILE_K; k < segments.end(s) * TILE_K; ++k)
      sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, panel + k * height));
    alignas(64) float values[16];
    _mm512_store_ps(values, sum);
    for (int64_t m = 0; m < height; ++m) sums[m * segments.count + s] = values[m];
  }
}

// Float panel of bfloat16 values to pairs (k0, k2), (k1, k3): lanes[k / 2][height].
TORCHCOINFER_AVX512 void panel_pairs(const float* panel, int64_t height, int64_t columns, uint16_t* pairs) {
  const __mmask16 mask = lanes_mask(height);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  uint32_t* lanes = reinterpret_cast<uint32_t*>(pairs);
  for (int64_t k = 0; k < columns; k += 4)
    for (int64_t i = 0; i < 2; ++i) {
      const __m512i first = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, panel + (k + i) * height));
      const __m512i second = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, panel + (k + i + 2) * height));
      const __m512i lane = merge(_mm512_srli_epi32(first, 16), second, high);
      _mm512_mask_storeu_epi32(lanes + (k / 2 + i) * height, mask, lane);
    }
}

// Float panel to int8 codes: lanes[k / 4][height], each row with its own scale; sums[m][segment] of the codes.
TORCHCOINFER_AVX512 void panel_codes(const float* panel, int64_t height, const Segments& segments, int8_t* codes,
                                     float* scales, int32_t* sums) {
  const __mmask16 mask = lanes_mask(height);
  const __m512 top = _mm512_set1_ps(CODE_TOP), bottom = _mm512_set1_ps(-CODE_TOP);
  __m512 largest = _mm512_setzero_ps(), poison = _mm512_setzero_ps();  // NaN where a value is NaN or infinite
  for (int64_t k = 0; k < segments.tiles * TILE_K; ++k) {
    const __m512 values = _mm512_maskz_loadu_ps(mask, panel + k * height);
    largest = _mm512_max_ps(_mm512_abs_ps(values), largest);
    poison = _mm512_fmadd_ps(values, _mm512_setzero_ps(), poison);
  }
  const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_setzero_ps(), _CMP_GT_OQ);
  const __m512 inverse = _mm512_maskz_div_ps(some, top, largest);
  _mm512_mask_storeu_ps(scales, mask, _mm512_add_ps(_mm512_div_ps(largest, top), poison));
  uint32_t* lanes = reinterpret_cast<uint32_t*>(codes);
  for (int64_t s = 0; s < segments.count; ++s) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = segments.begin(s) * TILE_K; k < segments.end(s) * TILE_K; k += 4) {
      __m512i lane = _mm512_setzero_si512();
      for (int i = 3; i >= 0; --i) {
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, panel + (k + i) * height), inverse);
        const __m512i code = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(scaled, top), bottom));
        sum = _mm512_add_epi32(sum, code);
        lane = _mm512_or_si512(_mm512_slli_epi32(lane, 8), _mm512_and_si512(code, _mm512_set1_epi32(0xff)));
      }
      _mm512_mask_storeu_epi32(lanes + k / 4 * height, mask, lane);
    }
    alignas(64) int32_t values[16];
    _mm512_store_si512(values, sum);
    for (int64_t m = 0; m < height; ++m) sums[m * segments.count + s] = values[m];
  }
}

// One task's workspace: `rows` pixels of one image and group.
struct Patches {
  const Buffer<float> floats, sums, scales;
  const Buffer<uint16_t> pairs;
  const Buffer<int8_t> codes;
  const Buffer<int32_t> code_sums;

  Patches(int64_t rows, int64_t columns, int64_t segments, bool coded, bool paired)
      : floats(rows * columns),
        sums(rows * segments),
        scales(rows),
        pairs(paired ? rows * columns : 0),
        codes(coded ? rows * columns : 0),
        code_sums(coded ? rows * segments : 0) {}
};

void multiply(const ConvCall& call, const Padded& image, const float* x, int64_t pixel, int64_t rows,
              const Segments& segments, const Patches& patches, const Output& out) {
  const int64_t columns = segments.tiles * TILE_K;
  const bool coded = call.activation_bits == 8, paired = !coded && call.dtype == Dtype::bfloat16;
  const RowTiles tiles(rows);
  for (int64_t i = 0; i < tiles.count; ++i) {
    const int64_t row = tiles.begin(i), height = tiles.begin(i + 1) - row;
    float* panel = patches.floats.get() + row * columns;
    gather_tile(call.shape, image, x, pixel + row, height, columns, panel);
    if (coded)
      panel_codes(panel, height, segments, patches.codes.get() + row * columns, patches.scales.get() + row,
                  patches.code_sums.get() + row * segments.count);
    if (!coded && call.weight.zeros) panel_sums(panel, height, segments, patches.sums.get() + row * segments.count);
    if (paired) panel_pairs(panel, height, columns, patches.pairs.get() + row * columns);
  }
  const int64_t begin = out.first / BLOCK_N, end = ceil_div(out.last, BLOCK_N);
  const float* sums = call.weight.zeros ? patches.sums.get() : nullptr;
  if (coded)
    gemm(call.weight,
         CodeRows{patches.codes.get(), patches.scales.get(), patches.code_sums.get(), rows, columns}, out, begin, end);
  else if (paired)
    gemm(call.weight, PairRows{patches.pairs.get(), sums, rows, columns}, out, begin, end);
  else
    gemm(call.weight, FloatRows{patches.floats.get(), sums, rows, columns}, out, begin, end);
}

// Pads the image's channel plane, converting to float.
TORCHCOINFER_AVX512 void pad_plane(const ConvCall& call, int64_t image, int64_t channel, int64_t width, float* out) {
  const ConvShape& s = call.shape;
  std::fill(out, out + (s.height + 2 * s.padding[0]) * width, 0.f);
  for (int64_t h = 0; h < s.height; ++h) {
    const int64_t start = image * call.x_strides[0] + channel * call.x_strides[1] + h * call.x_strides[2];
    float* row = out + (h + s.padding[0]) * width + s.padding[1];
    int64_t w = 0;
    if (call.x_strides[3] == 1)
      for (; w + 16 <= s.width; w += 16) _mm512_storeu_ps(row + w, load_floats(call.x, call.dtype, start + w));
    for (; w < s.width; ++w) row[w] = load_float(call.x, call.dtype, start + w * call.x_strides[3]);
  }
}

}  // namespace

void run_conv2d_panels(const ConvCall& call, const ParallelFor& parallel) {
  const ConvShape& s = call.shape;
  const Segments segments(call.weight.K, call.weight.group_size);
  const int64_t columns = segments.tiles * TILE_K, pixels = s.pixels(), group_out = s.out_channels / s.groups;
  const int64_t width = s.width + 2 * s.padding[1], plane = (s.height + 2 * s.padding[0]) * width;
  const Buffer<float> padded(s.batch * s.channels * plane);
  parallel(s.batch * s.channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      pad_plane(call, c / s.channels, c % s.channels, width, padded.get() + c * plane);
  });
  const int64_t fitting = PANEL_BYTES / std::max<int64_t>(columns * 4, 1);
  const int64_t each = std::min(pixels, std::clamp(fitting, LEAST_PIXELS, MOST_PIXELS));
  const int64_t parts = ceil_div(pixels, each);
  const bool coded = call.activation_bits == 8;
  parallel(s.batch * s.groups * parts, 1, [&](int64_t begin, int64_t end) {
    const Patches patches(each, columns, segments.count, coded, !coded && call.dtype == Dtype::bfloat16);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts, group = task / parts % s.groups, image = task / parts / s.groups;
      const int64_t pixel = part * each, rows = std::min(each, pixels - pixel);
      const float* x = padded.get() + (image * s.channels + group * s.group_channels()) * plane;
      char* y = static_cast<char*>(call.y) + (image * s.out_channels * pixels + pixel) * dtype_bytes(call.dtype);
      const Output out{y, call.dtype, 1, pixels, group * group_out, (group + 1) * group_out, call.bias};
      multiply(call, {padded.get(), width, plane}, x, pixel, rows, segments, patches, out);
    }
  });
}

}  // namespace torchcoinfer::avx512

#endif
