// Reading memory as fast as the machine can.
#pragma once

#include <cstdint>

namespace apex {

// The exclusive or of the 64-bit words of data[0, bytes); a tail of less than 256 bytes is left out. Vectors of the
// baseline instruction set are wide enough: one core waits for memory either way.
inline uint64_t XorBytes(const char* data, int64_t bytes) {
  typedef uint64_t Vector __attribute__((vector_size(64), aligned(1)));
  Vector a{}, b{}, c{}, d{};
  for (int64_t i = 0; i + 256 <= bytes; i += 256) {
    const Vector* at = reinterpret_cast<const Vector*>(data + i);
    a ^= at[0];
    b ^= at[1];
    c ^= at[2];
    d ^= at[3];
  }
  a ^= b ^ c ^ d;
  uint64_t total = 0;
  for (int i = 0; i < 8; ++i) total ^= a[i];
  return total;
}

}  // namespace apex
