#include "cpu/quant_conv2d.h"

#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/conv2d_narrow.h"
#include "cpu/conv2d_panels.h"

namespace torchcoinfer {
namespace {

constexpr int64_t PATCH_BYTES = 512 << 10;  // of gathered patches at a time: they stay in L2
constexpr int64_t LEAST_PIXELS = 24;
constexpr int64_t MOST_PIXELS = 240;

// Kernel offsets i for which 0 <= start + i * dilation < size.
struct Inside {
  int64_t begin, end;

  Inside(int64_t start, int64_t dilation, int64_t kernel, int64_t size)
      : begin(std::min(kernel, start < 0 ? ceil_div(-start, dilation) : 0)),
        end(std::max(begin, std::min(kernel, start >= size ? 0 : ceil_div(size - start, dilation)))) {}
};

// One patch, columns in the order (channel, kernel row, kernel column); outside of x: 0.
template <typename T>
void gather_patch(const ConvCall& call, const T* x, int64_t top, int64_t left, T* patch) {
  const ConvShape& s = call.shape;
  const Inside rows(top, s.dilation[0], s.kernel[0], s.height), columns(left, s.dilation[1], s.kernel[1], s.width);
  const bool whole = rows.begin == 0 && rows.end == s.kernel[0] && columns.begin == 0 && columns.end == s.kernel[1];
  if (!whole) std::fill(patch, patch + s.columns(), T{});
  const int64_t row_step = s.dilation[0] * call.x_strides[2], column_step = s.dilation[1] * call.x_strides[3];
  const T* corner = x + top * call.x_strides[2] + left * call.x_strides[3];
  for (int64_t c = 0; c < s.group_channels(); ++c) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      T* out = patch + (c * s.kernel[0] + i) * s.kernel[1];
      const int64_t start = c * call.x_strides[1] + i * row_step;
      for (int64_t j = columns.begin; j < columns.end; ++j) out[j] = corner[start + j * column_step];
    }
  }
}

template <typename T>
void gather(const ConvCall& call, int64_t image, int64_t group, int64_t pixel, int64_t count, T* patches) {
  const ConvShape& s = call.shape;
  const T* x = static_cast<const T*>(call.x) + image * call.x_strides[0] +
               group * s.group_channels() * call.x_strides[1];
  for (int64_t p = 0; p < count; ++p) {
    const int64_t row = (pixel + p) / s.out_width, column = (pixel + p) % s.out_width;
    gather_patch(call, x, row * s.stride[0] - s.padding[0], column * s.stride[1] - s.padding[1],
                 patches + p * s.columns());
  }
}

}  // namespace

void run_conv2d(const ConvCall& call, const ParallelFor& parallel) {
  const ConvShape& s = call.shape;
  const int64_t pixels = s.pixels(), columns = s.columns(), group_out = s.out_channels / s.groups;
  if (s.batch * pixels * s.out_channels == 0) return;
#if TORCHCOINFER_X86
  if (has_avx512(call.isa))
    return is_narrow(s) ? avx512::run_conv2d_narrow(call, parallel) : avx512::run_conv2d_panels(call, parallel);
#endif
  if (is_narrow(s)) return run_conv2d_narrow(call, parallel);
  const int64_t fitting = PATCH_BYTES / std::max<int64_t>(columns * 4, 1);
  const int64_t each = std::min(pixels, std::clamp(fitting, LEAST_PIXELS, MOST_PIXELS));
  const int64_t parts = ceil_div(pixels, each);
  const ParallelFor serial = [](int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
    if (count > 0) body(0, count);
  };
  parallel(s.batch * s.groups * parts, 1, [&](int64_t begin, int64_t end) {
    const Buffer<char> patches(each * columns * dtype_bytes(call.dtype));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts, group = task / parts % s.groups, image = task / parts / s.groups;
      const int64_t pixel = part * each, count = std::min(each, pixels - pixel);
      if (call.dtype == Dtype::float32)
        gather(call, image, group, pixel, count, reinterpret_cast<float*>(patches.get()));
      else
        gather(call, image, group, pixel, count, reinterpret_cast<uint16_t*>(patches.get()));
      char* y = static_cast<char*>(call.y) + (image * s.out_channels * pixels + pixel) * dtype_bytes(call.dtype);
      const Output out{y, call.dtype, 1, pixels, group * group_out, (group + 1) * group_out, call.bias};
      run_linear({call.weight, {patches.get(), call.dtype, columns, columns}, count, call.activation_bits, out, call.isa},
                 serial);
    }
  });
}

}  // namespace torchcoinfer
