// Reading and copying memory as fast as the machine can.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

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

// Copies whole pages. What is copied is read much later and elsewhere, so it goes past the caches: writing through them
// would read the target's lines first.
static inline void CopyPast(const char* from, char* to, int64_t bytes) {
#if defined(__x86_64__)
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0 && bytes % 64 == 0) {
    for (int64_t i = 0; i < bytes; i += 64) {
      const __m128i* at = reinterpret_cast<const __m128i*>(from + i);
      const __m128i a = _mm_loadu_si128(at), b = _mm_loadu_si128(at + 1);
      const __m128i c = _mm_loadu_si128(at + 2), d = _mm_loadu_si128(at + 3);
      __m128i* out = reinterpret_cast<__m128i*>(to + i);
      _mm_stream_si128(out, a);
      _mm_stream_si128(out + 1, b);
      _mm_stream_si128(out + 2, c);
      _mm_stream_si128(out + 3, d);
    }
    _mm_sfence();
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

}  // namespace apex
