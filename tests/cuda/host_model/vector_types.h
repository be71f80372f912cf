// CUDA's short vectors, dim3 and single-thread intrinsics, on the host.

#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#define HOST_MODEL_VECTORS(T, name, a2, a4)                                   \
  struct name##1 {                                                           \
    T x;                                                                      \
  };                                                                          \
  struct alignas(a2) name##2 {                                                \
    T x, y;                                                                   \
  };                                                                          \
  struct name##3 {                                                            \
    T x, y, z;                                                                \
  };                                                                          \
  struct alignas(a4) name##4 {                                                \
    T x, y, z, w;                                                             \
  };                                                                          \
  inline name##2 make_##name##2(T x, T y) {                                   \
    return {x, y};                                                            \
  }                                                                           \
  inline name##3 make_##name##3(T x, T y, T z) {                              \
    return {x, y, z};                                                         \
  }                                                                           \
  inline name##4 make_##name##4(T x, T y, T z, T w) {                         \
    return {x, y, z, w};                                                      \
  }
HOST_MODEL_VECTORS(signed char, char, 2, 4)
HOST_MODEL_VECTORS(unsigned char, uchar, 2, 4)
HOST_MODEL_VECTORS(short, short, 4, 8)
HOST_MODEL_VECTORS(unsigned short, ushort, 4, 8)
HOST_MODEL_VECTORS(int, int, 8, 16)
HOST_MODEL_VECTORS(unsigned, uint, 8, 16)
HOST_MODEL_VECTORS(float, float, 8, 16)
HOST_MODEL_VECTORS(double, double, 16, 16)
HOST_MODEL_VECTORS(long long, longlong, 16, 16)
HOST_MODEL_VECTORS(unsigned long long, ulonglong, 16, 16)
#undef HOST_MODEL_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using std::isfinite;

template <typename To, typename From>
inline To host_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline int __float_as_int(float value) {
  return host_bits<int>(value);
}
inline unsigned __float_as_uint(float value) {
  return host_bits<unsigned>(value);
}
inline float __int_as_float(int value) {
  return host_bits<float>(value);
}
inline float __uint_as_float(unsigned value) {
  return host_bits<float>(value);
}
// The build forbids contraction, so that these round once each.
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fmaf(a, b, c);
}
inline int __float2int_rn(float value) {
  return static_cast<int>(std::nearbyintf(value));
}
inline float __int2float_rn(int value) {
  return static_cast<float>(value);
}
inline int __popc(unsigned value) {
  return __builtin_popcount(value);
}
inline int __popcll(unsigned long long value) {
  return __builtin_popcountll(value);
}
inline int __ffs(int value) {
  return __builtin_ffs(value);
}
inline int __ffsll(long long value) {
  return __builtin_ffsll(value);
}
inline int __clz(int value) {
  return value ? __builtin_clz(static_cast<unsigned>(value)) : 32;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> 4 * i & 15;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (pick & 7) & 255);
    if (pick & 8) byte = byte & 128 ? 255 : 0;  // the sign, spread
    result |= byte << 8 * i;
  }
  return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return sum;
}
inline unsigned __vsub4(unsigned a, unsigned b) {
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= (((a >> 8 * i) - (b >> 8 * i)) & 255u) << 8 * i;
  return result;
}
template <typename T>
inline T __ldg(const T* place) {
  return *place;
}
template <typename T>
inline T __ldcs(const T* place) {
  return *place;
}
template <typename T>
inline void __stcs(T* place, T value) {
  *place = value;
}
template <typename T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
