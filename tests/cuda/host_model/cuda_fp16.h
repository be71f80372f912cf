// Stands in for CUDA's header of this name: see host_model.h.

#pragma once

#include "cpu/dtype.h"
#include "vector_types.h"

namespace host_model {

// A double to the nearest float that rounding once more does not spoil: round to odd.
inline float to_odd(double value) {
  const float near = static_cast<float>(value);
  if (static_cast<double>(near) == value || near != near || std::isinf(near)) return near;
  uint32_t bits = host_bits<uint32_t>(near);
  if (bits & 1) return near;
  const bool away = std::fabs(static_cast<double>(near)) < std::fabs(value);
  return host_bits<float>(away ? bits + 1 : bits - 1);
}

template <typename Storage>
struct Small {
  Storage value;
  Small() = default;
  Small(float from) {
    torchcoinfer::from_float(from, &value);
  }
  operator float() const {
    return torchcoinfer::to_float(value);
  }
};

template <typename T>
struct alignas(4) Pair {
  T x, y;
};

template <typename T>
T rounded(double value) {
  return T(to_odd(value));
}

}  // namespace host_model

using __half = host_model::Small<torchcoinfer::Float16>;
using __half2 = host_model::Pair<__half>;
using half = __half;
using half2 = __half2;

inline float __half2float(__half value) {
  return value;
}
inline __half __float2half_rn(float value) {
  return __half(value);
}
inline __half __float2half(float value) {
  return __half(value);
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__half(x), __half(y)};
}
inline __half2 __float2half2_rn(float x) {
  return {__half(x), __half(x)};
}
inline __half2 __half2half2(__half x) {
  return {x, x};
}
inline __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
inline float2 __half22float2(__half2 pair) {
  return {pair.x, pair.y};
}
inline __half __low2half(__half2 pair) {
  return pair.x;
}
inline __half __high2half(__half2 pair) {
  return pair.y;
}
inline __half __ushort_as_half(unsigned short bits) {
  return host_bits<__half>(bits);
}
inline unsigned short __half_as_ushort(__half value) {
  return host_bits<unsigned short>(value);
}

#define HOST_MODEL_PAIR_ARITHMETIC(T)                                                              \
  inline host_model::Pair<T> __hadd2(host_model::Pair<T> a, host_model::Pair<T> b) {               \
    return {host_model::rounded<T>(double(float(a.x)) + float(b.x)),                               \
            host_model::rounded<T>(double(float(a.y)) + float(b.y))};                              \
  }                                                                                                \
  inline host_model::Pair<T> __hsub2(host_model::Pair<T> a, host_model::Pair<T> b) {               \
    return {host_model::rounded<T>(double(float(a.x)) - float(b.x)),                               \
            host_model::rounded<T>(double(float(a.y)) - float(b.y))};                              \
  }                                                                                                \
  inline host_model::Pair<T> __hmul2(host_model::Pair<T> a, host_model::Pair<T> b) {               \
    return {host_model::rounded<T>(double(float(a.x)) * float(b.x)),                               \
            host_model::rounded<T>(double(float(a.y)) * float(b.y))};                              \
  }                                                                                                \
  inline host_model::Pair<T> __hfma2(host_model::Pair<T> a, host_model::Pair<T> b,                 \
                                     host_model::Pair<T> c) {                                      \
    return {host_model::rounded<T>(double(float(a.x)) * float(b.x) + float(c.x)),                  \
            host_model::rounded<T>(double(float(a.y)) * float(b.y) + float(c.y))};                 \
  }
HOST_MODEL_PAIR_ARITHMETIC(__half)
