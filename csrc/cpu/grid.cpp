// One source for every instruction set: plain loops over 16 lanes that the compiler vectorizes.
// A candidate costs one pass over a group that stays in registers and L1; the references make each pass over memory.

#include "cpu/grid.h"

namespace torchcoinfer {
namespace {

#define TORCHCOINFER_INLINE inline __attribute__((always_inline))

constexpr int LANES = 16;
// Adding and subtracting it rounds to the nearest even integer, as rint does, for magnitudes below 2^22.
constexpr float ROUNDER = 12582912.0f;

TORCHCOINFER_INLINE float storable(float scale, const GridSearch& search) {
  const float wanted = scale * search.unit;
  switch (search.scale_dtype) {
    case Dtype::float16: {
      Float16 stored;
      from_float(wanted, &stored);
      return to_float(stored) / search.unit;
    }
    case Dtype::bfloat16: {
      Bfloat16 stored;
      from_float(wanted, &stored);
      return to_float(stored) / search.unit;
    }
    default:
      return wanted / search.unit;
  }
}

TORCHCOINFER_INLINE float step_of(float value, float inverse, float low, float high) {
  float step = value * inverse;
  step = step < low ? low : step;
  step = step > high ? high : step;
  return (step + ROUNDER) - ROUNDER;
}

TORCHCOINFER_INLINE float sum(const float* lanes) {
  float total = 0.0f;
  for (int i = 0; i < LANES; ++i) total += lanes[i];
  return total;
}

TORCHCOINFER_INLINE float error_of(const float* x, const float* weight, int64_t n, float scale, float zero, float top) {
  const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale, low = -zero, high = top - zero;
  float lanes[LANES] = {};
  int64_t k = 0;
  for (; k + LANES <= n; k += LANES)
    for (int i = 0; i < LANES; ++i) {
      const float off = step_of(x[k + i], inverse, low, high) * scale - x[k + i];
      lanes[i] += off * off * weight[k + i];
    }
  float total = sum(lanes);
  for (; k < n; ++k) {
    const float off = step_of(x[k], inverse, low, high) * scale - x[k];
    total += off * off * weight[k];
  }
  return total;
}

// The scale of least error for the codes that (scale, zero) gives.
TORCHCOINFER_INLINE float least_squares(const float* x, const float* weight, int64_t n, float scale, float zero,
                                        float top) {
  const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale, low = -zero, high = top - zero;
  float products[LANES] = {}, powers[LANES] = {};
  int64_t k = 0;
  for (; k + LANES <= n; k += LANES)
    for (int i = 0; i < LANES; ++i) {
      const float step = step_of(x[k + i], inverse, low, high), weighted = step * weight[k + i];
      products[i] += weighted * x[k + i];
      powers[i] += weighted * step;
    }
  float product = sum(products), power = sum(powers);
  for (; k < n; ++k) {
    const float step = step_of(x[k], inverse, low, high), weighted = step * weight[k];
    product += weighted * x[k];
    power += weighted * step;
  }
  return power > 0.0f ? product / power : scale;
}

TORCHCOINFER_INLINE void search_range(const GridSearch& search, int64_t begin, int64_t end, float* scales,
                                      float* zeros) {
  const int64_t n = search.group_size;
  for (int64_t m = begin; m < end; ++m) {
    const float* x = search.values + m * n;
    const float* weight = search.importance + m % search.importance_rows * n;
    float best_scale = storable(search.start_scales[m], search), best_zero = search.start_zeros[m];
    float best = error_of(x, weight, n, best_scale, best_zero, search.top);
    for (int64_t s = 0; s < search.starts; ++s) {
      const float full = search.start_scales[s * search.groups + m], zero = search.start_zeros[s * search.groups + m];
      for (int64_t r = 0; r < search.ratios; ++r) {
        const float scale = storable(full * search.shares[r], search);
        const float error = error_of(x, weight, n, scale, zero, search.top);
        if (error < best) best = error, best_scale = scale, best_zero = zero;
      }
    }
    for (int i = 0; i < search.refinements; ++i) {
      const float scale = storable(least_squares(x, weight, n, best_scale, best_zero, search.top), search);
      const float error = error_of(x, weight, n, scale, best_zero, search.top);
      if (error < best) best = error, best_scale = scale;
    }
    scales[m] = best_scale;
    zeros[m] = best_zero;
  }
}

TORCHCOINFER_AVX512 void search_avx512(const GridSearch& search, int64_t begin, int64_t end, float* scales,
                                       float* zeros) {
  search_range(search, begin, end, scales, zeros);
}

TORCHCOINFER_AVX2 void search_avx2(const GridSearch& search, int64_t begin, int64_t end, float* scales, float* zeros) {
  search_range(search, begin, end, scales, zeros);
}

}  // namespace

void search_grid(const GridSearch& search, Isa isa, int64_t begin, int64_t end, float* scales, float* zeros) {
  switch (isa) {
    case Isa::amx:
    case Isa::avx512:
      return search_avx512(search, begin, end, scales, zeros);
    case Isa::avx2:
      return search_avx2(search, begin, end, scales, zeros);
    default:
      return search_range(search, begin, end, scales, zeros);
  }
}

}  // namespace torchcoinfer
