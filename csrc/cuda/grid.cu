// Clip search (cpu/grid.h): sixteen lanes a group, candidates one after the other. The CPU's plain path, bit for bit: its
// sums are sixteen too, added up in the order of the lanes, then the values after the last sixteen. (Its AVX paths fuse
// products and sums: there a candidate may win that is as good.)

#include "cuda/element.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int TEAM = 16;  // lanes of a group
constexpr int THREADS = 256;
constexpr int HELD = 8;   // values of a lane in registers: groups of up to 128
// Adding and subtracting it rounds to the nearest even integer for magnitudes below 2^22, as on the CPU beyond them.
constexpr float ROUNDER = 12582912.f;

struct Sums {
  float first, second;
};

// A lane's part of a group: values lane, lane + 16, ..; the last ones, fewer than 16, are `after`.
template <bool IN_REGISTERS>
struct Group {
  const float *x, *weight;
  int lane, whole;  // values a lane, without the one after
  bool has_after;
  float values[HELD], weights[HELD];

  __device__ Group(const float* group, const float* importance, int64_t n) : x(group), weight(importance) {
    lane = threadIdx.x % TEAM, whole = static_cast<int>(n / TEAM), has_after = lane < n % TEAM;
    if constexpr (IN_REGISTERS) {
#pragma unroll
      for (int j = 0; j < HELD; ++j) {
        values[j] = j < whole ? x[j * TEAM + lane] : 0.f;
        weights[j] = j < whole ? weight[j * TEAM + lane] : 0.f;
      }
    }
  }

  // The sums over the group of what `terms` makes of a value and its weight; every lane gets them.
  template <typename Terms>
  __device__ __forceinline__ Sums sum(const Terms& terms) const {
    Sums own{0.f, 0.f};
    const auto add = [&](float value, float of_value) {
      const Sums one = terms(value, of_value);
      own.first = __fadd_rn(own.first, one.first), own.second = __fadd_rn(own.second, one.second);
    };
    if constexpr (IN_REGISTERS) {
#pragma unroll
      for (int j = 0; j < HELD; ++j)
        if (j < whole) add(values[j], weights[j]);
    } else {
      for (int64_t k = lane; k < static_cast<int64_t>(whole) * TEAM; k += TEAM) add(__ldg(x + k), __ldg(weight + k));
    }
    Sums all = in_order({0.f, 0.f}, own, TEAM);
    const int64_t last = static_cast<int64_t>(whole) * TEAM + lane;
    const Sums after = has_after ? terms(__ldg(x + last), __ldg(weight + last)) : Sums{0.f, 0.f};
    const int count = __popc(__ballot_sync(ALL_LANES, has_after) & ((1u << TEAM) - 1u));
    return count ? in_order(all, after, count) : all;
  }

  __device__ __forceinline__ static Sums in_order(Sums sum, const Sums& own, int lanes) {
    for (int i = 0; i < lanes; ++i) {
      sum.first = __fadd_rn(sum.first, __shfl_sync(ALL_LANES, own.first, i, TEAM));
      sum.second = __fadd_rn(sum.second, __shfl_sync(ALL_LANES, own.second, i, TEAM));
    }
    return sum;
  }
};

struct Candidate {
  float scale, inverse, zero, top;

  __device__ Candidate(float of_scale, float of_zero, float of_top) : scale(of_scale), zero(of_zero), top(of_top) {
    inverse = scale == 0.f ? 0.f : __fdiv_rn(1.f, scale);
  }
  // code - zero of the nearest grid point
  __device__ __forceinline__ float step(float value) const {
    float step = __fmul_rn(value, inverse);
    const float low = -zero, high = __fsub_rn(top, zero);
    step = step < low ? low : step;
    step = step > high ? high : step;
    return __fsub_rn(__fadd_rn(step, ROUNDER), ROUNDER);
  }
};

__device__ float storable(float scale, const GridSearch& search) {
  return __fdiv_rn(as_stored(__fmul_rn(scale, search.unit), search.scale_type), search.unit);
}

template <bool IN_REGISTERS>
__device__ float error_of(const Group<IN_REGISTERS>& group, const Candidate& candidate) {
  return group
      .sum([&](float value, float weight) {
        const float off = __fsub_rn(__fmul_rn(candidate.step(value), candidate.scale), value);
        return Sums{__fmul_rn(__fmul_rn(off, off), weight), 0.f};
      })
      .first;
}

// The scale of least error for the codes that the candidate gives.
template <bool IN_REGISTERS>
__device__ float least_squares(const Group<IN_REGISTERS>& group, const Candidate& candidate) {
  const Sums sums = group.sum([&](float value, float weight) {
    const float step = candidate.step(value), weighted = __fmul_rn(step, weight);
    return Sums{__fmul_rn(weighted, value), __fmul_rn(weighted, step)};
  });
  return sums.second > 0.f ? __fdiv_rn(sums.first, sums.second) : candidate.scale;
}

template <bool IN_REGISTERS>
__global__ void __launch_bounds__(THREADS, 4) search(GridSearch s, float* scales, float* zeros) {
  const int64_t place = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) / TEAM;
  const int64_t m = place < s.groups ? place : s.groups - 1;  // all lanes add up together
  const Group<IN_REGISTERS> group(s.values + m * s.group_size, s.importance + m % s.importance_rows * s.group_size,
                                  s.group_size);
  float best_scale = storable(s.start_scales[m], s), best_zero = s.start_zeros[m];
  float best = error_of(group, Candidate(best_scale, best_zero, s.top));
  for (int64_t start = 0; start < s.starts; ++start) {
    const float full = s.start_scales[start * s.groups + m], zero = s.start_zeros[start * s.groups + m];
    for (int64_t r = 0; r < s.ratios; ++r) {
      const float scale = storable(__fmul_rn(full, __ldg(s.shares + r)), s);
      const float error = error_of(group, Candidate(scale, zero, s.top));
      if (error < best) best = error, best_scale = scale, best_zero = zero;
    }
  }
  for (int i = 0; i < s.refinements; ++i) {
    const float scale = storable(least_squares(group, Candidate(best_scale, best_zero, s.top)), s);
    const float error = error_of(group, Candidate(scale, best_zero, s.top));
    if (error < best) best = error, best_scale = scale;
  }
  if (place < s.groups && threadIdx.x % TEAM == 0) scales[m] = best_scale, zeros[m] = best_zero;
}

}  // namespace

const char* search_grid(const GridSearch& s, float* scales, float* zeros, void* stream) {
  if (s.groups == 0) return nullptr;
  launch(s.group_size <= HELD * TEAM ? search<true> : search<false>,
         static_cast<unsigned>(ceil_div(s.groups, THREADS / TEAM)), THREADS, 0, stream, s, scales, zeros);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
