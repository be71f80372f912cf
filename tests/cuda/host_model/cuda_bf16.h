// Stands in for CUDA's header of this name: see host_model.h.

#pragma once

#include "cuda_fp16.h"

using __nv_bfloat16 = host_model::Small<torchcoinfer::Bfloat16>;
using __nv_bfloat162 = host_model::Pair<__nv_bfloat16>;

inline float __bfloat162float(__nv_bfloat16 value) {
  return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return __nv_bfloat16(value);
}
inline __nv_bfloat16 __float2bfloat16(float value) {
  return __nv_bfloat16(value);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline __nv_bfloat162 __float2bfloat162_rn(float x) {
  return {__nv_bfloat16(x), __nv_bfloat16(x)};
}
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) {
  return {x, x};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) {
  return {pair.x, pair.y};
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return host_bits<__nv_bfloat16>(bits);
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) {
  return host_bits<unsigned short>(value);
}
HOST_MODEL_PAIR_ARITHMETIC(__nv_bfloat16)
