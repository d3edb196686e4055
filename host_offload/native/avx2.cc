// Kernels for machines with AVX2, FMA and F16C.
#include "kernel.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include "tile.h"

namespace apex {
namespace {

struct Avx2 {
  using F = __m256;
  typedef uint32_t Words __attribute__((vector_size(32)));
  static constexpr int kLanes = 8;
  static constexpr int kAccumulators = 8;
  static constexpr int kMaxHeads = 4;

  static inline F Set(float x) { return _mm256_set1_ps(x); }
  static inline F Load(const float* p) { return _mm256_loadu_ps(p); }
  static inline F Load(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static inline void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static inline F MulAdd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // The second operand wins where either is NaN.
  static inline F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static inline F Round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // Below the smallest normal number the result is zero.
  static inline F ScaleByPowerOfTwo(F x, F n) {
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    const F scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), power));
    const F normal = _mm256_or_ps(_mm256_cmp_ps(n, Set(-125.0f), _CMP_GE_OQ), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_and_ps(_mm256_blendv_ps(scaled, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)), normal);
  }
  // Keeps the compiler from loading what `next` points to before `done` is computed.
  template <class T>
  static inline void KeepOrder(F& done, const T*& next) {
    asm volatile("" : "+x"(done), "+r"(next));
  }

  // Each half of the result holds the sums of a's, b's, c's and d's lanes in that half.
  static inline F SumWithinLanes(F a, F b, F c, F d) {
    return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  }
  // Half i of the result is the sum of the halves of x[i].
  static inline F SumAcrossLanes(const F (&x)[2]) {
    return _mm256_add_ps(_mm256_permute2f128_ps(x[0], x[1], 0x20), _mm256_permute2f128_ps(x[0], x[1], 0x31));
  }

  // Lane i holds p[i % kSlots].
  template <int kSlots>
  static inline F Repeat(const float* p) {
    if (kSlots == 1) return _mm256_set1_ps(*p);
    if (kSlots == 2) return _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(p)));
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
  }
  // Lane i holds what `combine` makes of all lanes that are i modulo kSlots.
  template <int kSlots, class Combine>
  static inline F Fold(F x, Combine combine) {
    x = combine(x, _mm256_permute2f128_ps(x, x, 1));
    if (kSlots < 4) x = combine(x, _mm256_permute_ps(x, 0x4e));
    if (kSlots < 2) x = combine(x, _mm256_permute_ps(x, 0xb1));
    return x;
  }
  static inline unsigned Greater(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
};

}  // namespace

const Kernel* Avx2Kernel(Type type) { return FloatKernelTable<Avx2>(Instructions::kAvx2, type); }
}  // namespace apex
#endif
