// Rounding of the few thousand elements that are appended to the type of the cache.
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

inline uint32_t ToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// To the nearest, ties to even; beyond the largest half to infinity.
inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = ToBits(value), magnitude = bits & 0x7fffffffu;
  // Halves below 2^-14 are multiples of 2^-24, which is what floats around 0.5 are rounded to. (XLA's threads treat
  // subnormal floats as zero; the smallest half is far above those.)
  const uint32_t small = ToBits(FromBits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t half = magnitude < 0x38800000u ? small : magnitude < 0x47800000u ? normal : large;
  return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = ToBits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

inline void Round(Type type, const float* from, int64_t count, char* to) {
  if (type == Type::kFloat32) {
    std::memcpy(to, from, count * 4);
    return;
  }
  const auto put = [to](int64_t i, uint16_t bits) { std::memcpy(to + 2 * i, &bits, sizeof bits); };
  if (type == Type::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) put(i, FloatToBFloat16(from[i]));
  } else {
    for (int64_t i = 0; i < count; ++i) put(i, FloatToHalf(from[i]));
  }
}

}  // namespace apex
