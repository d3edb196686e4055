// Sixteen float32 lanes.
#pragma once

#include <immintrin.h>

#include "tile.h"

namespace apex {
namespace {

struct Avx512 {
  using F = __m512;
  typedef uint32_t Words __attribute__((vector_size(64)));
  static constexpr int kLanes = 16;
  static constexpr int kAccumulators = 16;
  static constexpr int kMaxHeads = 4;

  static inline F Set(float x) { return _mm512_set1_ps(x); }
  static inline F Load(const float* p) { return _mm512_loadu_ps(p); }
  static inline F Load(const Float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static inline void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static inline F MulAdd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // The second operand wins where either is NaN.
  static inline F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static inline F Round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static inline F ScaleByPowerOfTwo(F x, F n) { return _mm512_scalef_ps(x, n); }
  // Keeps the compiler from loading what `next` points to before `done` is computed.
  template <class T>
  static inline void KeepOrder(F& done, const T*& next) {
    asm volatile("" : "+v"(done), "+r"(next));
  }

  // Each quarter of the result holds the sums of a's, b's, c's and d's lanes in that quarter.
  static inline F SumWithinLanes(F a, F b, F c, F d) {
    const F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d ab_pd = _mm512_castps_pd(ab), cd_pd = _mm512_castps_pd(cd);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab_pd, cd_pd)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(ab_pd, cd_pd)));
  }
  // Quarter i of the result is the sum of the quarters of x[i].
  static inline F SumAcrossLanes(const F (&x)[4]) {
    const F low = _mm512_add_ps(_mm512_shuffle_f32x4(x[0], x[1], 0x44), _mm512_shuffle_f32x4(x[0], x[1], 0xee));
    const F high = _mm512_add_ps(_mm512_shuffle_f32x4(x[2], x[3], 0x44), _mm512_shuffle_f32x4(x[2], x[3], 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
  }

  // Lane i holds p[i % kSlots].
  template <int kSlots>
  static inline F Repeat(const float* p) {
    if (kSlots == 1) return _mm512_set1_ps(*p);
    if (kSlots == 2) {
      double pair;
      __builtin_memcpy(&pair, p, sizeof pair);
      return _mm512_castpd_ps(_mm512_set1_pd(pair));
    }
    return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
  }
  // Lane i holds what `combine` makes of all lanes that are i modulo kSlots.
  template <int kSlots, class Combine>
  static inline F Fold(F x, Combine combine) {
    x = combine(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    x = combine(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    if (kSlots < 4) x = combine(x, _mm512_permute_ps(x, 0x4e));
    if (kSlots < 2) x = combine(x, _mm512_permute_ps(x, 0xb1));
    return x;
  }
  static inline unsigned Greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
};

}  // namespace
}  // namespace apex
