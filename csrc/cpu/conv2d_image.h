// The image of a convolution as flat planes of floats in which every kernel tap is one constant distance away: for the
// output position p = row * pitch + column, the tap's input is values[p + tap]. Columns from out_width to pitch are
// positions too, whose results are dropped. AVX-512.
//
// A plane is zero padded and split by the stride: rows r, r + stride, .. of the padded image and columns alike form a
// phase, [rows][pitch]. With stride 1 the padding right of a row is the padding left of the next.

#pragma once

#include <vector>

#include "cpu/buffer.h"
#include "cpu/quant_conv2d.h"

namespace torchcoinfer::avx512 {

// Which of 16 neighboring positions are pixels, and the first of those pixels.
struct PixelRun {
  int64_t pixel;
  uint32_t positions;  // a bit each
};

class ConvImage {
 public:
  ConvImage(const ConvCall& call, const ParallelFor& parallel);

  // Channel c of an image.
  const float* plane(int64_t image, int64_t channel) const {
    return values_ + image * image_step_ + channel * plane_step_;
  }
  int64_t plane_step() const {
    return plane_step_;
  }
  int64_t positions() const {
    return positions_;
  }
  // The pixels among positions 16 * index and on.
  PixelRun pixels(int64_t index) const {
    return pixels_[index];
  }
  // Floats of a plane that taps may read.
  int64_t extent() const {
    return extent_;
  }
  // Distances of the kernel's taps within a plane, row by row.
  const std::vector<int64_t>& taps() const {
    return taps_;
  }

 private:
  void fill_plane(const ConvCall& call, int64_t image, int64_t channel, float* plane) const;

  int64_t pitch_, rows_, positions_, extent_, plane_step_, image_step_;
  std::vector<int64_t> taps_;
  std::vector<PixelRun> pixels_;
  Buffer<float> copied_;
  const float* values_;
};

}  // namespace torchcoinfer::avx512
