// Arithmetic of the tile kernel in float32. Included inside the target region of its user: internal linkage, so that no
// function compiled for one instruction set can be picked by the linker for another.
#pragma once

#include <type_traits>

#include "kernel.h"

namespace apex {
namespace {

// Half types are only ever loaded, so a wrapper around the bits is enough.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// bfloat16 is widened by a shift and a mask, which parts even columns from odd ones.
template <class T>
constexpr bool kIsInterleaved = std::is_same_v<T, BFloat16>;

// float16 is widened by conversions, which take so long that every line can be prefetched in the meantime.
template <class T>
constexpr bool kIsSlow = std::is_same_v<T, Float16>;

// 2^x for x <= 0, relative error below 2e-7, exact zero far below; NaN stays NaN.
template <class V>
inline typename V::F Exp2(typename V::F x) {
  using F = typename V::F;
  x = V::Max(V::Set(-160.0f), x);
  F n = V::Round(x);
  F r = x - n;
  F p = V::Set(1.533757678e-4f);
  p = V::MulAdd(p, r, V::Set(1.339986037e-3f));
  p = V::MulAdd(p, r, V::Set(9.618519534e-3f));
  p = V::MulAdd(p, r, V::Set(5.550328998e-2f));
  p = V::MulAdd(p, r, V::Set(2.402264661e-1f));
  p = V::MulAdd(p, r, V::Set(6.931472056e-1f));
  p = V::MulAdd(p, r, V::Set(1.0f));
  return V::ScaleByPowerOfTwo(p, n);
}

// cap * tanh(x / cap), relative error below 4e-7 however small or large x is; NaN stays NaN, infinity becomes the cap.
template <class V>
inline typename V::F SoftCap(typename V::F x, float cap) {
  using F = typename V::F;
  const F ratio = x * V::Set(1.0f / cap), magnitude = ratio < V::Set(0.0f) ? -ratio : ratio;
  // Small ones by the odd polynomial of Cephes' tanhf, as x times a factor near 1: the quotient below would cancel, and
  // however small the ratio is, x itself keeps its digits.
  const F square = ratio * ratio;
  F p = V::Set(-5.70498872745e-3f);
  p = V::MulAdd(p, square, V::Set(2.06390887954e-2f));
  p = V::MulAdd(p, square, V::Set(-5.37397155531e-2f));
  p = V::MulAdd(p, square, V::Set(1.33314422036e-1f));
  p = V::MulAdd(p, square, V::Set(-3.33332819422e-1f));
  const F small = V::MulAdd(p * square, x, x);
  // tanh(z) = 1 - 2 e / (1 + e) with e = exp(-2 z), z >= 0.
  const F e = Exp2<V>(magnitude * V::Set(-2.885390082f));
  const F large = V::MulAdd(V::Set(-2.0f * cap), e / (e + V::Set(1.0f)), V::Set(cap));
  return magnitude < V::Set(0.625f) ? small : ratio < V::Set(0.0f) ? -large : large;
}

// Arithmetic in float32 on a cache of any type T.
template <class V, class T>
struct FloatMath {
  using F = typename V::F;
  using Query = float;
  static constexpr int kTokens = 1;            // per step of Accumulate
  static constexpr int kUnit = 2 * V::kLanes;  // columns in one step, held by two vectors
  static constexpr int kGrain = V::kLanes;     // scores that Weigh takes at a time

  // Two vectors of what lies at p: one behind the other, or where a shift and a mask are cheaper than widening moves,
  // even columns in a and odd ones in b.
  template <class Q>
  static inline void Load2(const Q* p, F& a, F& b) {
    if constexpr (kIsInterleaved<Q>) {
      typename V::Words x;
      __builtin_memcpy(&x, p, sizeof x);
      a = (F)(x << 16);
      b = (F)(x & 0xffff0000u);
    } else {
      a = V::Load(p);
      b = V::Load(p + V::kLanes);
    }
  }

  // Which column the j-th float of these two is.
  template <class Q>
  static constexpr int Column(int j) {
    return kIsInterleaved<Q> ? (j < V::kLanes ? 2 * j : 2 * (j - V::kLanes) + 1) : j;
  }

  // A unit of columns of a key or a query.
  struct Columns {
    F a, b;
  };
  template <class Q>
  static inline Columns LoadUnit(const Q* p) {
    Columns columns;
    Load2(p, columns.a, columns.b);
    return columns;
  }
  static inline F Dot(F sum, Columns key, Columns query) {
    return V::MulAdd(key.b, query.b, V::MulAdd(key.a, query.a, sum));
  }

  // sum[h] += p[h] * v over tokens [begin, end) and kUnits units of columns starting at c. The weight of token t and
  // head h lies at t * kSlots + h.
  template <int kSlots, int kHeads, int kUnits, class Prefetch>
  static inline void Accumulate(const T* value, int width, int c, int begin, int end, const float* weights,
                                Prefetch feed, float* sum) {
    F acc[kHeads][2 * kUnits];
    for (int h = 0; h < kHeads; ++h)
      for (int i = 0; i < 2 * kUnits; ++i) acc[h][i] = V::Load(sum + h * width + c + i * V::kLanes);
    for (int t = begin; t < end; ++t) {
      F p[kHeads];
      for (int h = 0; h < kHeads; ++h) p[h] = V::Set(weights[t * kSlots + h]);
      for (int u = 0; u < kUnits; ++u) {
        feed.Unit();
        F a, b;
        Load2(value + t * width + c + u * kUnit, a, b);
        for (int h = 0; h < kHeads; ++h) {
          acc[h][2 * u] = V::MulAdd(p[h], a, acc[h][2 * u]);
          acc[h][2 * u + 1] = V::MulAdd(p[h], b, acc[h][2 * u + 1]);
        }
      }
    }
    for (int h = 0; h < kHeads; ++h)
      for (int i = 0; i < 2 * kUnits; ++i) V::Store(sum + h * width + c + i * V::kLanes, acc[h][i]);
  }

  // Turns scores [first, last) into weights as Accumulate reads them; returns sums of them, lane by lane.
  template <int kSlots>
  static inline F Weigh(float* scores, int first, int last, F origin) {
    F total = V::Set(0.0f);
    for (int i = first; i < last; i += V::kLanes) {
      const F p = Exp2<V>(V::Load(scores + i) - origin);
      V::Store(scores + i, p);
      total = total + p;
    }
    return total;
  }

  static void PrepareQuery(Type type, const void* query, int count, int width, void* prepared) {
    float* out = static_cast<float*>(prepared);
    if (type == Type::kFloat32) return Widen(static_cast<const float*>(query), count * width, out);
    if (type == Type::kBFloat16) return Widen(static_cast<const BFloat16*>(query), count * width, out);
    Widen(static_cast<const Float16*>(query), count * width, out);
  }

  // Widens to float32, in the order of columns in which keys are widened.
  template <class Q>
  static inline void Widen(const Q* query, int count, float* out) {
    for (int i = 0; i < count; i += kUnit) {
      F a, b;
      Load2(query + i, a, b);
      V::Store(out + i, a);
      V::Store(out + i + V::kLanes, b);
      if (kIsInterleaved<Q> == kIsInterleaved<T>) continue;
      float ordered[kUnit];
      for (int j = 0; j < kUnit; ++j) ordered[Column<Q>(j)] = out[i + j];
      for (int j = 0; j < kUnit; ++j) out[i + j] = ordered[Column<T>(j)];
    }
  }

  static void OrderedSum(const float* sum, int width, float scale, float* out) {
    for (int i = 0; i < width; i += kUnit)
      for (int j = 0; j < kUnit; ++j) out[i + Column<T>(j)] = sum[i + j] * scale;
  }
};

}  // namespace
}  // namespace apex
