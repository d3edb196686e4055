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

// The weights of two tokens, packed two to a float.
inline int32_t PairAt(const float* weights, int index) {
  int32_t pair;
  __builtin_memcpy(&pair, weights + index, sizeof pair);
  return pair;
}

struct PairMath {
  using V = Avx512;
  using F = __m512;
  using Query = BFloat16;
  static constexpr int kTokens = 2;
  static constexpr int kUnit = 32;
  static constexpr int kGrain = 32;

  using Columns = __m512bh;
  static inline Columns LoadUnit(const BFloat16* p) { return AsPairs(_mm512_loadu_si512(p)); }
  static inline F Dot(F sum, Columns key, Columns query) { return _mm512_dpbf16_ps(sum, key, query); }

  // Tokens go in pairs (even, odd) whose values are interleaved column by column. `weights` holds pairs of bfloat16:
  // those of tokens t and t + 1 and head h at t / 2 * kSlots + h.
  template <int kSlots, int kHeads, int kUnits, class Prefetch>
  static inline void Accumulate(const BFloat16* value, int width, int c, int begin, int end, const float* weights,
                                Prefetch feed, float* sum) {
    F acc[kHeads][2 * kUnits];
    for (int h = 0; h < kHeads; ++h)
      for (int i = 0; i < 2 * kUnits; ++i) acc[h][i] = V::Load(sum + h * width + c + i * 16);
    int t = begin;
    if (t % 2 != 0) AddPair<kSlots, kHeads, kUnits, false, true>(value, width, c, t++ - 1, weights, feed, acc);
    for (; t + 2 <= end; t += 2) AddPair<kSlots, kHeads, kUnits, true, true>(value, width, c, t, weights, feed, acc);
    if (t < end) AddPair<kSlots, kHeads, kUnits, true, false>(value, width, c, t, weights, feed, acc);
    for (int h = 0; h < kHeads; ++h)
      for (int i = 0; i < 2 * kUnits; ++i) V::Store(sum + h * width + c + i * 16, acc[h][i]);
  }

  // An unseen token has weight zero, but zero times NaN would not vanish: its values are not read.
  template <int kSlots, int kHeads, int kUnits, bool kEven, bool kOdd, class Prefetch>
  static inline void AddPair(const BFloat16* value, int width, int c, int t, const float* weights, Prefetch& feed,
                             F (&acc)[kHeads][2 * kUnits]) {
    __m512bh p[kHeads];
    for (int h = 0; h < kHeads; ++h) p[h] = AsPairs(_mm512_set1_epi32(PairAt(weights, t / 2 * kSlots + h)));
    for (int u = 0; u < kUnits; ++u) {
      feed.Unit();
      const BFloat16* at = value + t * width + c + u * kUnit;
      const __m512i even = kEven ? _mm512_loadu_si512(at) : _mm512_setzero_si512();
      const __m512i odd = kOdd ? _mm512_loadu_si512(at + width) : _mm512_setzero_si512();
      const __m512bh low = AsPairs(_mm512_unpacklo_epi16(even, odd));
      const __m512bh high = AsPairs(_mm512_unpackhi_epi16(even, odd));
      for (int h = 0; h < kHeads; ++h) {
        acc[h][2 * u] = _mm512_dpbf16_ps(acc[h][2 * u], low, p[h]);
        acc[h][2 * u + 1] = _mm512_dpbf16_ps(acc[h][2 * u + 1], high, p[h]);
      }
    }
  }

  // Where the k-th of 32 weights comes from, so that the two tokens of a pair lie together for each slot.
  template <int kSlots>
  static inline __m512i PairOrder() {
    alignas(64) uint16_t order[32];
    for (int k = 0; k < 32; ++k) order[k] = (k / (2 * kSlots) * 2 + k % 2) * kSlots + k / 2 % kSlots;
    return _mm512_load_si512(order);
  }

  // Sums the weights as they were rounded, so that the rounding cancels in the quotient.
  template <int kSlots>
  static inline F Weigh(float* scores, int first, int last, F origin) {
    const __m512bh ones = AsPairs(_mm512_set1_epi16(0x3f80));
    const __m512i order = PairOrder<kSlots>();
    F total = V::Set(0.0f);
    for (int i = first; i < last; i += 32) {
      const F low = Exp2<V>(V::Load(scores + i) - origin);
      const F high = Exp2<V>(V::Load(scores + i + 16) - origin);
      const __m512i rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
      const __m512i pairs = kSlots == 1 ? rounded : _mm512_permutexvar_epi16(order, rounded);
      total = _mm512_dpbf16_ps(total, AsPairs(pairs), ones);
      // Weights of two bytes each land on scores that have been read already.
      _mm512_storeu_si512(scores + i / 2, pairs);
    }
    return total;
  }

  // This kernel is chosen for bfloat16 queries only.
  static void PrepareQuery(Type, const void* query, int count, int width, void* prepared) {
    __builtin_memcpy(prepared, query, static_cast<size_t>(count) * width * sizeof(BFloat16));
  }

  // Interleaving works within 128-bit lanes: of each eight columns the first four go low, the others high.
  static void OrderedSum(const float* sum, int width, float scale, float* out) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for (int i = 0; i < width; i += kUnit) {
      const F low = V::Load(sum + i) * V::Set(scale), high = V::Load(sum + i + 16) * V::Set(scale);
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
#endif
