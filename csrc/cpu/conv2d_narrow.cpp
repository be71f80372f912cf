#include "cpu/conv2d_narrow.h"

#include <algorithm>

#include "cpu/buffer.h"

#define TORCHCOINFER_INLINE inline __attribute__((always_inline))

namespace torchcoinfer {
namespace {

constexpr float CODE_TOP = 127.f;
constexpr float ROUND = 12582912.f;  // 1.5 * 2^23: adding and subtracting it rounds to nearest even

// What one output row needs: the padded image of the group as floats, and the row of W.
struct NarrowRow {
  const ConvShape* shape;
  const float* x;       // [group channels, padded height, padded width], from the output row's first input row on
  int64_t plane;        // padded height * padded width
  int64_t width;        // padded width
  const float* weight;  // [K]: weights, or code - zero point where activations are coded
  const float* scales;  // [ceil(K / group)]: of the groups of W's row; coded activations only
  int64_t group;        // columns of a quantization group
};

// Calls body(k, first element) for every tap in W's column order; out[j] belongs to element j * stride.
template <typename Body>
TORCHCOINFER_INLINE void for_taps(const NarrowRow& row, const Body& body) {
  const ConvShape& s = *row.shape;
  int64_t k = 0;
  for (int64_t c = 0; c < s.group_channels(); ++c)
    for (int64_t i = 0; i < s.kernel[0]; ++i)
      for (int64_t j = 0; j < s.kernel[1]; ++j, ++k)
        body(k, row.x + c * row.plane + i * s.dilation[0] * row.width + j * s.dilation[1]);
}

TORCHCOINFER_INLINE void weight_only_body(const NarrowRow& row, float* sums, float*) {
  const int64_t count = row.shape->out_width, stride = row.shape->stride[1];
  std::fill(sums, sums + count, 0.f);
  for_taps(row, [&](int64_t k, const float* x) __attribute__((always_inline)) {
    const float weight = row.weight[k];
    if (stride == 1)
      for (int64_t j = 0; j < count; ++j) sums[j] += weight * x[j];
    else
      for (int64_t j = 0; j < count; ++j) sums[j] += weight * x[j * stride];
  });
}

// scratch: 4 * out_width floats. Every pixel's patch has its own int8 scale.
TORCHCOINFER_INLINE void coded_body(const NarrowRow& row, float* sums, float* scratch) {
  const int64_t count = row.shape->out_width, stride = row.shape->stride[1], columns = row.shape->columns();
  float *largest = scratch, *inverse = scratch + count, *scaled = inverse + count, *part = scaled + count;
  std::fill(sums, sums + count, 0.f);
  std::fill(largest, largest + count, 0.f);
  std::fill(part, part + count, 0.f);
  for_taps(row, [&](int64_t, const float* x) __attribute__((always_inline)) {
    for (int64_t j = 0; j < count; ++j) {
      const float size = __builtin_fabsf(x[j * stride]);
      largest[j] = size > largest[j] ? size : largest[j];
    }
  });
  for (int64_t j = 0; j < count; ++j) inverse[j] = largest[j] > 0 ? CODE_TOP / largest[j] : 0.f;
  for_taps(row, [&](int64_t k, const float* x) __attribute__((always_inline)) {
    // a loop of its own: fused into the rounding, a multiply-add would round ties otherwise
    for (int64_t j = 0; j < count; ++j) scaled[j] = x[j * stride] * inverse[j];
    for (int64_t j = 0; j < count; ++j) part[j] += row.weight[k] * (scaled[j] + ROUND - ROUND);
    if ((k + 1) % row.group != 0 && k + 1 != columns) return;
    for (int64_t j = 0; j < count; ++j) {
      sums[j] += row.scales[k / row.group] * part[j];
      part[j] = 0.f;
    }
  });
  for (int64_t j = 0; j < count; ++j) sums[j] *= largest[j] / CODE_TOP;
}

#define TORCHCOINFER_NARROW(name)                                                            \
  void name##_scalar(const NarrowRow& row, float* sums, float* scratch) {                    \
    name##_body(row, sums, scratch);                                                         \
  }                                                                                          \
  TORCHCOINFER_AVX2 void name##_avx2(const NarrowRow& row, float* sums, float* scratch) {    \
    name##_body(row, sums, scratch);                                                         \
  }
TORCHCOINFER_NARROW(weight_only)
TORCHCOINFER_NARROW(coded)

using Row = void (*)(const NarrowRow&, float*, float*);

Row row_kernel(Isa isa, bool codes) {
  if (isa == Isa::avx2) return codes ? coded_avx2 : weight_only_avx2;
  return codes ? coded_scalar : weight_only_scalar;
}

// One image's channels of one group, zero padded, as floats.
void pad_image(const ConvCall& call, int64_t image, int64_t group, float* padded) {
  const ConvShape& s = call.shape;
  const int64_t width = s.width + 2 * s.padding[1], plane = (s.height + 2 * s.padding[0]) * width;
  std::fill(padded, padded + s.group_channels() * plane, 0.f);
  for (int64_t c = 0; c < s.group_channels(); ++c)
    for (int64_t h = 0; h < s.height; ++h) {
      const int64_t start = image * call.x_strides[0] + (group * s.group_channels() + c) * call.x_strides[1] +
                            h * call.x_strides[2];
      float* out = padded + c * plane + (h + s.padding[0]) * width + s.padding[1];
      for (int64_t w = 0; w < s.width; ++w) out[w] = load_float(call.x, call.dtype, start + w * call.x_strides[3]);
    }
}

}  // namespace

NarrowWeights::NarrowWeights(const ConvCall& call)
    : values(call.weight.N * call.weight.K),
      group(call.weight.group_size ? call.weight.group_size : std::max<int64_t>(call.weight.K, 1)),
      groups(group_count(call.weight.K, call.weight.group_size)) {
  const QuantMatrix& w = call.weight;
  const int64_t tiles = ceil_div(w.K, TILE_K);
  for (int64_t o = 0; o < w.N; ++o) {
    const int64_t block = o / BLOCK_N;
    const int n = static_cast<int>(o % BLOCK_N);
    const uint8_t* packed = w.packed + block * tiles * tile_bytes(w.bits);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t place = (block * groups + g) * BLOCK_N + n;
      const float scale = load_float(w.scales, w.scale_dtype, place);
      const float factor = call.activation_bits == 8 ? 1.f : scale;
      const int zero = w.zeros ? w.zeros[place] : implicit_zero(w.bits);
      scales.push_back(scale);
      for (int64_t k = g * group; k < std::min(w.K, (g + 1) * group); ++k) {
        const int code = tile_code(packed + k / TILE_K * tile_bytes(w.bits), w.bits, n, static_cast<int>(k % TILE_K));
        values[o * w.K + k] = factor * static_cast<float>(code - zero);
      }
    }
  }
}

void run_conv2d_narrow(const ConvCall& call, const ParallelFor& parallel) {
  const ConvShape& s = call.shape;
  const bool codes = call.activation_bits == 8;
  const int64_t columns = s.columns(), group_out = s.out_channels / s.groups;
  const NarrowWeights weights(call);
  const Row kernel = row_kernel(call.isa, codes);
  const int64_t width = s.width + 2 * s.padding[1], plane = (s.height + 2 * s.padding[0]) * width;
  parallel(s.batch * s.groups, 1, [&](int64_t begin, int64_t end) {
    const Buffer<float> padded(s.group_channels() * plane), sums(s.out_width), scratch(4 * s.out_width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / s.groups, channel_group = task % s.groups;
      pad_image(call, image, channel_group, padded.get());
      for (int64_t o = channel_group * group_out; o < (channel_group + 1) * group_out; ++o) {
        const float bias = call.bias ? call.bias[o] : 0.f;
        for (int64_t h = 0; h < s.out_height; ++h) {
          const float* x = padded.get() + h * s.stride[0] * width;
          const float* scales = &weights.scales[o * weights.groups];
          kernel({&s, x, plane, width, &weights.values[o * columns], scales, weights.group}, sums.get(), scratch.get());
          const int64_t place = ((image * s.out_channels + o) * s.out_height + h) * s.out_width;
          for (int64_t j = 0; j < s.out_width; ++j) store_float(sums.get()[j] + bias, call.y, call.dtype, place + j);
        }
      }
    }
  });
}

}  // namespace torchcoinfer
