#include "cpu/conv2d_image.h"

#if TORCHCOINFER_X86

#include <algorithm>

#include "cpu/decode_avx512.h"

namespace torchcoinfer::avx512 {
namespace {

// Columns of a row of a phase.
int64_t pitch_of(const ConvShape& s) {
  const int64_t span = (s.kernel[1] - 1) * s.dilation[1];
  if (s.stride[1] == 1 && s.padding[1] <= span) return s.width + s.padding[1];
  return ceil_div(s.width + 2 * s.padding[1], s.stride[1]);
}

// Whether x is its own image.
bool in_place(const ConvCall& call) {
  const ConvShape& s = call.shape;
  return call.dtype == Dtype::float32 && s.kernel[0] * s.kernel[1] == 1 && s.stride[0] * s.stride[1] == 1 &&
         s.padding[0] + s.padding[1] == 0 && call.x_strides[3] == 1 && call.x_strides[2] == s.width;
}

int64_t copied_size(const ConvCall& call, int64_t plane) {
  return in_place(call) ? 0 : call.shape.batch * call.shape.channels * plane;
}

PixelRun find_pixels(const ConvShape& s, int64_t pitch, int64_t position) {
  int64_t row = position / pitch, column = position % pitch;
  PixelRun run{row * s.out_width + std::min(column, s.out_width), 0};
  for (int64_t done = 0; done < 16 && row < s.out_height; ++row, column = 0) {
    const int64_t count = std::min(16 - done, pitch - column);
    const int64_t kept = std::clamp<int64_t>(s.out_width - column, 0, count);
    run.positions |= ((1u << kept) - 1) << done;
    done += count;
  }
  return run;
}

TORCHCOINFER_AVX512_INLINE __m512 load_some(const void* x, Dtype dtype, int64_t index, int64_t count) {
  const auto mask = static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << std::max<int64_t>(count, 0)) - 1);
  if (dtype == Dtype::float32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + index);
  const __m256i halves = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + index);
  if (dtype == Dtype::float16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// out[i] = x[start + i * step]
TORCHCOINFER_AVX512 void copy_columns(const void* x, Dtype dtype, int64_t start, int64_t step, int64_t count,
                                      float* out) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  if (step != 1 && step != 2) {
    for (int64_t i = 0; i < count; ++i) out[i] = load_float(x, dtype, start + i * step);
    return;
  }
  for (int64_t i = 0; i < count; i += 16) {
    const auto mask = static_cast<__mmask16>(count - i >= 16 ? 0xffff : (1 << (count - i)) - 1);
    const int64_t left = (count - i - 1) * step + 1;
    __m512 values = load_some(x, dtype, start + i * step, left);
    if (step == 2) {
      const __m512 more = load_some(x, dtype, start + i * step + 16, left - 16);
      values = _mm512_permutex2var_ps(values, even, more);
    }
    _mm512_mask_storeu_ps(out + i, mask, values);
  }
}

}  // namespace

ConvImage::ConvImage(const ConvCall& call, const ParallelFor& parallel)
    : pitch_(pitch_of(call.shape)),
      rows_(ceil_div(call.shape.height + 2 * call.shape.padding[0], call.shape.stride[0])),
      positions_(call.shape.out_height * pitch_),
      extent_(call.shape.stride[0] * call.shape.stride[1] * rows_ * pitch_ +
              (call.shape.kernel[1] - 1) * call.shape.dilation[1]),
      plane_step_(in_place(call) ? call.x_strides[1] : extent_),
      image_step_(in_place(call) ? call.x_strides[0] : call.shape.channels * extent_),
      copied_(copied_size(call, extent_)),
      values_(in_place(call) ? static_cast<const float*>(call.x) : copied_.get()) {
  const ConvShape& s = call.shape;
  for (int64_t i = 0; i < s.kernel[0]; ++i)
    for (int64_t j = 0; j < s.kernel[1]; ++j) {
      const int64_t row = i * s.dilation[0], column = j * s.dilation[1];
      const int64_t phase = row % s.stride[0] * s.stride[1] + column % s.stride[1];
      taps_.push_back((phase * rows_ + row / s.stride[0]) * pitch_ + column / s.stride[1]);
    }
  for (int64_t position = 0; position < positions_; position += 16)
    pixels_.push_back(find_pixels(s, pitch_, position));
  if (in_place(call)) return;
  parallel(s.batch * s.channels, ceil_div(int64_t{1} << 14, extent_), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      fill_plane(call, i / s.channels, i % s.channels, copied_.get() + i * extent_);
  });
}

void ConvImage::fill_plane(const ConvCall& call, int64_t image, int64_t channel, float* plane) const {
  const ConvShape& s = call.shape;
  const int64_t start = image * call.x_strides[0] + channel * call.x_strides[1];
  std::fill(plane, plane + extent_, 0.f);
  for (int64_t phase = 0; phase < s.stride[1]; ++phase) {
    // the first column of x in this phase: first + padding = phase, modulo the stride
    const int64_t first = ((phase - s.padding[1]) % s.stride[1] + s.stride[1]) % s.stride[1];
    if (first >= s.width) continue;
    const int64_t count = ceil_div(s.width - first, s.stride[1]), column = (first + s.padding[1]) / s.stride[1];
    int64_t row = s.padding[0] / s.stride[0], row_phase = s.padding[0] % s.stride[0];
    for (int64_t h = 0; h < s.height; ++h) {
      copy_columns(call.x, call.dtype, start + h * call.x_strides[2] + first * call.x_strides[3],
                   s.stride[1] * call.x_strides[3], count,
                   plane + ((row_phase * s.stride[1] + phase) * rows_ + row) * pitch_ + column);
      if (++row_phase == s.stride[0]) {
        row_phase = 0;
        ++row;
      }
    }
  }
}

}  // namespace torchcoinfer::avx512

#endif
