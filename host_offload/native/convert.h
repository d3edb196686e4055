// Widening of queries to float32, a few thousand elements a row.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernel.h"

namespace apex {

inline float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float HalfToFloat(uint16_t half) {
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  const uint32_t sign = (half & 0x8000u) << 16;
  if (magnitude >= 0x0f800000u) return FromBits(sign | 0x7f800000u | magnitude);
  if (magnitude >= 0x00800000u) return FromBits(sign | (magnitude + 0x38000000u));
  // XLA's threads treat subnormal floats as zero, so a subnormal half must not pass through one.
  const float value = FromBits(magnitude + 0x38800000u) - 0x1p-14f;
  return sign != 0 ? -value : value;
}

inline void ToFloat(Type type, const char* data, int64_t first, int64_t count, float* out) {
  if (type == Type::kFloat32) {
    std::memcpy(out, data + first * 4, count * 4);
    return;
  }
  const char* from = data + first * 2;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, from + 2 * i, sizeof half);
    out[i] = type == Type::kBFloat16 ? FromBits(static_cast<uint32_t>(half) << 16) : HalfToFloat(half);
  }
}

}  // namespace apex
