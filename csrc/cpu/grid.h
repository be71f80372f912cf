// Clip search: the scale and zero point of least weighted squared error, group by group.

#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace torchcoinfer {

struct GridSearch {
  int64_t group_size;         // values a group
  int64_t importance_rows;    // group m is weighed by row m % importance_rows
  int64_t groups;             // M
  int64_t starts;             // S ranges to shrink
  int64_t ratios;             // R shares of a range
  int refinements;            // least-squares steps after the search
  float top;                  // 2^bits - 1
  float unit;                 // scales are stored times this power of two
  Dtype scale_dtype;          // as which scales are stored
  const float* values;        // [M, group_size], divided by unit
  const float* importance;    // [importance_rows, group_size]
  const float* start_scales;  // [S, M]
  const float* start_zeros;   // [S, M]
  const float* shares;        // [R]
};

// Groups begin .. end - 1; scales [M] storable, still divided by unit; zeros [M].
void search_grid(const GridSearch& search, Isa isa, int64_t begin, int64_t end, float* scales, float* zeros);

}  // namespace torchcoinfer
