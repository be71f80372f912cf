// Element types of plain pointers, and their scalar conversions to and from float.

#pragma once

#include <cstdint>
#include <cstring>

namespace torchcoinfer {

enum class Dtype { float32, float16, bfloat16 };

constexpr int64_t dtype_bytes(Dtype dtype) {
  return dtype == Dtype::float32 ? 4 : 2;
}

struct Bfloat16 {
  uint16_t bits;
};
#if defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
using Float16 = __fp16;  // g++ 12 for aarch64 does not know _Float16; the same bits, conversions and rounding
#else
using Float16 = _Float16;
#endif

inline float to_float(float value) {
  return value;
}
inline float to_float(Float16 value) {
  return static_cast<float>(value);
}
inline float to_float(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline void from_float(float value, float* out) {
  *out = value;
}
inline void from_float(float value, Float16* out) {
  *out = static_cast<Float16>(value);
}
inline void from_float(float value, Bfloat16* out) {  // round to nearest even, NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) {
    out->bits = static_cast<uint16_t>(bits >> 16 | 0x40);
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float load_float(const void* data, Dtype dtype, int64_t index) {
  switch (dtype) {
    case Dtype::float32:
      return static_cast<const float*>(data)[index];
    case Dtype::float16:
      return to_float(static_cast<const Float16*>(data)[index]);
    default:
      return to_float(static_cast<const Bfloat16*>(data)[index]);
  }
}

inline void store_float(float value, void* data, Dtype dtype, int64_t index) {
  switch (dtype) {
    case Dtype::float32:
      static_cast<float*>(data)[index] = value;
      break;
    case Dtype::float16:
      from_float(value, static_cast<Float16*>(data) + index);
      break;
    default:
      from_float(value, static_cast<Bfloat16*>(data) + index);
  }
}

}  // namespace torchcoinfer
