// Sixteen float32 lanes.
#pragma once

#include <immintrin.h>

#include "tile.h"

namespace apex {
namespace {

struct Avx512 {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kAccumulators = 16;
  static constexpr int kMaxHeads = 4;

  static inline F Set(float x) { return _mm512_set1_ps(x); }
  static inline F Load(const float* p) { return _mm512_loadu_ps(p); }
  static inline void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static inline F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static inline F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static inline F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static inline F MulAdd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // The second operand wins where either is NaN.
  static inline F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static inline F Round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static inline F ScaleByPowerOfTwo(F x, F n) { return _mm512_scalef_ps(x, n); }
  static inline float HorizontalSum(F x) { return _mm512_reduce_add_ps(x); }
  static inline float HorizontalMax(F x) { return _mm512_reduce_max_ps(x); }

  // out[i] = scale * (sum of lanes of the i-th vector)
  static inline void Store4Sums(float* out, F a, F b, F c, F d, float scale) {
    const F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d ab_pd = _mm512_castps_pd(ab), cd_pd = _mm512_castps_pd(cd);
    const F abcd = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab_pd, cd_pd)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(ab_pd, cd_pd)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    _mm_storeu_ps(out, _mm_mul_ps(sums, _mm_set1_ps(scale)));
  }

  static inline void Load2(const float* p, F& a, F& b) {
    a = _mm512_loadu_ps(p);
    b = _mm512_loadu_ps(p + 16);
  }
  // Even columns in a, odd ones in b: a shift and a mask are cheaper than widening moves.
  static inline void Load2(const BFloat16* p, F& a, F& b) {
    const __m512i x = _mm512_loadu_si512(p);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static inline void Load2(const Float16* p, F& a, F& b) {
    a = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    b = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16)));
  }

  // Which column the j-th float of a loaded pair of vectors is.
  template <class T>
  static constexpr int Column(int j) {
    return IsInterleaved<T>() ? (j < 16 ? 2 * j : 2 * (j - 16) + 1) : j;
  }
};

}  // namespace
}  // namespace apex
