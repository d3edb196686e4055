// bfloat16 caches on machines that multiply pairs of bfloat16 into float32 sums.
#include "kernel.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
#include <immintrin.h>

#include "tile.h"
#include "vector_avx512.h"

namespace apex {
namespace {

inline __m512bh AsPairs(__m512i x) { return reinterpret_cast<__m512bh>(x); }

// The weights of tokens t and t + 1, packed two to a float.
inline int32_t PairAt(const float* weights, int t) {
  int32_t pair;
  __builtin_memcpy(&pair, weights + t / 2, sizeof pair);
  return pair;
}

struct PairMath {
  using V = Avx512;
  using F = __m512;
  using Query = BFloat16;
  static constexpr int kTokens = 2;
  static constexpr int kUnit = 32;

  template <int kHeads, Prefetch kPrefetch>
  static inline void Dot(const BFloat16* key, int width, const BFloat16* query, Feed feed, F (&acc)[kHeads][4]) {
    for (int t = 0; t < 4; ++t) {
      if (kPrefetch == Prefetch::kPerRow) feed.Step();
      for (int c = 0; c < width; c += kUnit) {
        if (kPrefetch == Prefetch::kPerUnit) feed.Step();
        const __m512bh k = AsPairs(_mm512_loadu_si512(key + t * width + c));
        for (int h = 0; h < kHeads; ++h)
          acc[h][t] = _mm512_dpbf16_ps(acc[h][t], k, AsPairs(_mm512_loadu_si512(query + h * width + c)));
      }
    }
  }

  // Tokens go in pairs (even, odd) whose values are interleaved column by column; `weights` holds pairs of bfloat16.
  template <int kHeads, int kUnits, Prefetch kPrefetch>
  static inline void Accumulate(const BFloat16* value, int width, int c, int begin, int end, const float* weights,
                                Feed feed, float* sum) {
    F acc[kHeads][2 * kUnits];
    for (int h = 0; h < kHeads; ++h)
      for (int i = 0; i < 2 * kUnits; ++i) acc[h][i] = V::Load(sum + h * width + c + i * 16);
    for (int t = begin & ~1; t < end; t += 2) {
      if (kPrefetch == Prefetch::kPerRow) feed.Step();
      __m512bh p[kHeads];
      for (int h = 0; h < kHeads; ++h) p[h] = AsPairs(_mm512_set1_epi32(PairAt(weights + h * kMaxPageSize, t)));
      // A token outside [begin, end) has weight zero, but zero times NaN would not vanish.
      const bool has_even = t >= begin, has_odd = t + 1 < end;
      for (int u = 0; u < kUnits; ++u) {
        if (kPrefetch == Prefetch::kPerUnit) feed.Step();
        const BFloat16* at = value + t * width + c + u * kUnit;
        const __m512i even = has_even ? _mm512_loadu_si512(at) : _mm512_setzero_si512();
        const __m512i odd = has_odd ? _mm512_loadu_si512(at + width) : _mm512_setzero_si512();
        const __m512bh low = AsPairs(_mm512_unpacklo_epi16(even, odd));
        const __m512bh high = AsPairs(_mm512_unpackhi_epi16(even, odd));
        for (int h = 0; h < kHeads; ++h) {
          acc[h][2 * u] = _mm512_dpbf16_ps(acc[h][2 * u], low, p[h]);
          acc[h][2 * u + 1] = _mm512_dpbf16_ps(acc[h][2 * u + 1], high, p[h]);
        }
      }
    }
    for (int h = 0; h < kHeads; ++h)
      for (int i = 0; i < 2 * kUnits; ++i) V::Store(sum + h * width + c + i * 16, acc[h][i]);
  }

  // Sums the weights as they were rounded, so that the rounding cancels in the quotient.
  static inline float Weigh(float* scores, int begin, int end, float max) {
    F total = V::Set(0.0f);
    for (int t = begin / 16 * 16; t < end; t += 16) {
      const F p = Exp2<V>(V::Sub(V::Load(scores + t), V::Set(max)));
      const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(p));
      total = V::Add(total, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
      // Sixteen weights of two bytes each land on scores that have been read already.
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(scores + t / 2), rounded);
    }
    return V::HorizontalSum(total);
  }

  static void PrepareQuery(const float* query, int count, int width, void* prepared) {
    uint16_t* out = static_cast<uint16_t*>(prepared);
    for (int i = 0; i < count * width; i += 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(query + i))));
    }
  }

  // Interleaving works within 128-bit lanes: of each eight columns the first four go low, the others high.
  static void OrderedSum(const float* sum, int width, float scale, float* out) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for (int i = 0; i < width; i += kUnit) {
      const F low = V::Mul(V::Load(sum + i), V::Set(scale)), high = V::Mul(V::Load(sum + i + 16), V::Set(scale));
      V::Store(out + i, _mm512_permutex2var_ps(low, first, high));
      V::Store(out + i + 16, _mm512_permutex2var_ps(low, second, high));
    }
  }
};

}  // namespace

const Kernel* Avx512Bf16Kernel() {
  static const Kernel kernel = TileKernel<Avx512, BFloat16, PairMath>::Make(Instructions::kAvx512Bf16);
  return &kernel;
}

}  // namespace apex
#else
namespace apex {
const Kernel* Avx512Bf16Kernel() { return nullptr; }
}  // namespace apex
#endif
