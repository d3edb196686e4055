// Reading memory as fast as the machine can.
#pragma once

#include <cstdint>

namespace apex {

// Widest vectors first: with narrow ones the loop itself would be measured, not memory.
#if defined(__x86_64__) && defined(__linux__)
#define APEX_WIDEST_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define APEX_WIDEST_VECTORS
#endif

// The exclusive or of the 64-bit words of data[0, bytes); a tail of less than 256 bytes is left out.
APEX_WIDEST_VECTORS static uint64_t XorBytes(const char* data, int64_t bytes) {
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
