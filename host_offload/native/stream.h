// Reading and copying memory as fast as the machine can.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace apex {

typedef uint64_t Vector16 __attribute__((vector_size(16)));
typedef uint64_t Vector32 __attribute__((vector_size(32)));
typedef uint64_t Vector64 __attribute__((vector_size(64)));

// The exclusive or of the 64-bit words of data[0, bytes), four vectors at a time; a tail of less than that is left out.
// Vectors wider than the machine's would be kept in memory, and the loop itself would be measured.
template <class Vector>
__attribute__((always_inline)) inline uint64_t XorVectors(const char* data, int64_t bytes) {
  constexpr int64_t kBytes = sizeof(Vector);
  Vector total[4] = {};
  for (int64_t i = 0; i + 4 * kBytes <= bytes; i += 4 * kBytes) {
    for (int j = 0; j < 4; ++j) {
      Vector words;
      std::memcpy(&words, data + i + j * kBytes, kBytes);
      total[j] ^= words;
    }
  }
  const Vector all = total[0] ^ total[1] ^ total[2] ^ total[3];
  uint64_t word = 0;
  for (int64_t i = 0; i < kBytes / 8; ++i) word ^= all[i];
  return word;
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) inline uint64_t XorAvx512(const char* data, int64_t bytes) {
  return XorVectors<Vector64>(data, bytes);
}
__attribute__((target("avx2"))) inline uint64_t XorAvx2(const char* data, int64_t bytes) {
  return XorVectors<Vector32>(data, bytes);
}
#endif

// Reads data[0, bytes) but for a tail, with the widest vectors of this machine.
inline uint64_t XorBytes(const char* data, int64_t bytes) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return XorAvx512(data, bytes);
  if (__builtin_cpu_supports("avx2")) return XorAvx2(data, bytes);
#endif
  return XorVectors<Vector16>(data, bytes);
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
