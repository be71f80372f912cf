// Narrow group convolutions over flat planes: every tap is one unaligned load of 16 positions. AVX-512.

#include "cpu/conv2d_narrow.h"
#include "cpu/conv2d_panels.h"

#if TORCHCOINFER_X86

#include <algorithm>

namespace torchcoinfer::avx512 {
namespace {

constexpr float CODE_TOP = 127.f;
constexpr int TOGETHER = 4;               // vectors of positions: chains of additions
constexpr int64_t WORK_GRAIN = 1 << 16;   // multiply-adds that are worth a thread

// One output channel: its row of W, and where its taps lie from a position on.
struct Channel {
  const float* x;
  const std::vector<int64_t>& taps;  // [K]
  const float* weight;               // [K]
  const float* scales;               // of the row's groups
  int64_t group;
};

template <int VECTORS>
TORCHCOINFER_AVX512_INLINE void load_tap(const float* x, __mmask16 last, __m512* values) {
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v)
    values[v] = v + 1 < VECTORS ? _mm512_loadu_ps(x + 16 * v) : _mm512_maskz_loadu_ps(last, x + 16 * v);
}

// sums [VECTORS]; `last`: lanes of the last vector.
template <int VECTORS>
TORCHCOINFER_AVX512_INLINE void weight_only(const Channel& channel, const float* x, __mmask16 last, __m512* sums) {
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) sums[v] = _mm512_setzero_ps();
  const auto columns = static_cast<int64_t>(channel.taps.size());
  for (int64_t k = 0; k < columns; ++k) {
    __m512 values[VECTORS];
    load_tap<VECTORS>(x + channel.taps[k], last, values);
    const __m512 weight = _mm512_set1_ps(channel.weight[k]);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[v] = _mm512_fmadd_ps(weight, values[v], sums[v]);
  }
}

// Every position's patch has its own int8 scale.
template <int VECTORS>
TORCHCOINFER_AVX512_INLINE void coded(const Channel& channel, const float* x, __mmask16 last, __m512* sums) {
  const auto columns = static_cast<int64_t>(channel.taps.size());
  __m512 largest[VECTORS], inverse[VECTORS], parts[VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) largest[v] = parts[v] = sums[v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < columns; ++k) {
    __m512 values[VECTORS];
    load_tap<VECTORS>(x + channel.taps[k], last, values);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) largest[v] = _mm512_max_ps(_mm512_abs_ps(values[v]), largest[v]);
  }
  const __m512 top = _mm512_set1_ps(CODE_TOP);
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    const __mmask16 some = _mm512_cmp_ps_mask(largest[v], _mm512_setzero_ps(), _CMP_GT_OQ);
    inverse[v] = _mm512_maskz_div_ps(some, top, largest[v]);
  }
  for (int64_t k = 0; k < columns; ++k) {
    __m512 values[VECTORS];
    load_tap<VECTORS>(x + channel.taps[k], last, values);
    const __m512 weight = _mm512_set1_ps(channel.weight[k]);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const __m512 code = _mm512_roundscale_ps(_mm512_mul_ps(values[v], inverse[v]), _MM_FROUND_TO_NEAREST_INT);
      parts[v] = _mm512_fmadd_ps(weight, code, parts[v]);
    }
    if ((k + 1) % channel.group != 0 && k + 1 != columns) continue;
    const __m512 scale = _mm512_set1_ps(channel.scales[k / channel.group]);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      sums[v] = _mm512_fmadd_ps(scale, parts[v], sums[v]);
      parts[v] = _mm512_setzero_ps();
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) sums[v] = _mm512_mul_ps(sums[v], _mm512_div_ps(largest[v], top));
}

// Vectors [index, index + VECTORS) of one output channel's positions.
template <bool CODED, int VECTORS>
TORCHCOINFER_AVX512_INLINE void convolve(const Channel& channel, const ConvImage& image, int64_t index, __m512 bias,
                                         const Output& out, int64_t plane) {
  const int64_t left = image.positions() - 16 * (index + VECTORS - 1);
  const __mmask16 last = left >= 16 ? 0xffff : static_cast<__mmask16>((1 << left) - 1);
  __m512 sums[VECTORS];
  if constexpr (CODED)
    coded<VECTORS>(channel, channel.x + 16 * index, last, sums);
  else
    weight_only<VECTORS>(channel, channel.x + 16 * index, last, sums);
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) store_pixels(_mm512_add_ps(sums[v], bias), image.pixels(index + v), out, plane);
}

template <bool CODED>
TORCHCOINFER_AVX512 void convolve_plane(const Channel& channel, const ConvImage& image, float bias, const Output& out,
                                        int64_t plane) {
  const int64_t vectors = ceil_div(image.positions(), 16);
  const __m512 biases = _mm512_set1_ps(bias);
  int64_t index = 0;
  for (; index + TOGETHER <= vectors; index += TOGETHER)
    convolve<CODED, TOGETHER>(channel, image, index, biases, out, plane);
  if (vectors - index == 3) convolve<CODED, 3>(channel, image, index, biases, out, plane);
  if (vectors - index == 2) convolve<CODED, 2>(channel, image, index, biases, out, plane);
  if (vectors - index == 1) convolve<CODED, 1>(channel, image, index, biases, out, plane);
}

}  // namespace

void run_conv2d_narrow(const ConvCall& call, const ParallelFor& parallel) {
  const ConvShape& s = call.shape;
  const NarrowWeights weights(call);
  const ConvImage image(call, parallel);
  std::vector<int64_t> taps;
  for (int64_t c = 0; c < s.group_channels(); ++c)
    for (const int64_t tap : image.taps()) taps.push_back(c * image.plane_step() + tap);
  const auto convolve = call.activation_bits == 8 ? convolve_plane<true> : convolve_plane<false>;
  const Output out{call.y, call.dtype, 1, s.pixels(), 0, s.out_channels, call.bias};
  const int64_t group_out = s.out_channels / s.groups, columns = s.columns();
  const int64_t grain = ceil_div(WORK_GRAIN, std::max<int64_t>(image.positions() * columns, 1));
  parallel(s.batch * s.out_channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = task / s.out_channels, o = task % s.out_channels;
      const Channel channel{image.plane(index, o / group_out * s.group_channels()), taps, &weights.values[o * columns],
                            &weights.scales[o * weights.groups], weights.group};
      convolve(channel, image, call.bias ? call.bias[o] : 0.f, out, task * s.pixels());
    }
  });
}

}  // namespace torchcoinfer::avx512

#endif
