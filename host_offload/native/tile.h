// The tile kernel, written once over a small vector type. Included by one source per instruction set, inside that
// source's target region: everything here has internal linkage, so that no function compiled for one instruction set
// can be picked by the linker for another.
#pragma once

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
constexpr bool IsInterleaved() {
  return false;
}
template <>
constexpr bool IsInterleaved<BFloat16>() {
  return true;
}

// Far enough ahead to hide the latency of memory, near enough to stay in the second-level cache.
// How a loop over tokens prefetches. With one query head there is little arithmetic between two loads: a line at a
// time, near enough for the hardware's own prefetching to follow. With more, a row at a time from further away.
// Measured: the wrong one of the two costs a quarter of the bandwidth.
enum class Prefetch { kNone, kPerUnit, kPerRow };
constexpr ptrdiff_t kNearBytes = 4096, kFarBytes = 8192;

constexpr ptrdiff_t PrefetchDistance(Prefetch prefetch) {
  return prefetch == Prefetch::kPerUnit ? kNearBytes : kFarBytes;
}

// Prefetches a stretch of the stream in order, in even steps beside the loads: in long bursts many would be dropped.
struct Feed {
  const char* at;
  int bytes;  // per step

  inline void Step() {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
    at += bytes;
  }
};

// The place in the stream `distance` after `from`.
inline const char* Ahead(const Stream& stream, const void* from, ptrdiff_t distance) {
  const char* target = static_cast<const char*>(from) + distance;
  return target < stream.end ? target : stream.next + (target - stream.end);
}

// 2^x for x <= 0, relative error below 2e-7, exact zero far below; NaN stays NaN.
template <class V>
inline typename V::F Exp2(typename V::F x) {
  using F = typename V::F;
  x = V::Max(V::Set(-160.0f), x);
  F n = V::Round(x);
  F r = V::Sub(x, n);
  F p = V::Set(1.533757678e-4f);
  p = V::MulAdd(p, r, V::Set(1.339986037e-3f));
  p = V::MulAdd(p, r, V::Set(9.618519534e-3f));
  p = V::MulAdd(p, r, V::Set(5.550328998e-2f));
  p = V::MulAdd(p, r, V::Set(2.402264661e-1f));
  p = V::MulAdd(p, r, V::Set(6.931472056e-1f));
  p = V::MulAdd(p, r, V::Set(1.0f));
  return V::ScaleByPowerOfTwo(p, n);
}

// Arithmetic in float32 on a cache of any type T.
template <class V, class T>
struct FloatMath {
  using F = typename V::F;
  using Query = float;
  static constexpr int kTokens = 1;  // per step of Accumulate
  static constexpr int kUnit = 2 * V::kLanes;  // columns in one step, held by two vectors

  template <int kHeads, Prefetch kPrefetch>
  static inline void Dot(const T* key, int width, const float* query, Feed feed, F (&acc)[kHeads][4]) {
    for (int t = 0; t < 4; ++t) {
      if (kPrefetch == Prefetch::kPerRow) feed.Step();
      for (int c = 0; c < width; c += kUnit) {
        if (kPrefetch == Prefetch::kPerUnit) feed.Step();
        F a, b;
        V::Load2(key + t * width + c, a, b);
        for (int h = 0; h < kHeads; ++h) {
          const F qa = V::Load(query + h * width + c), qb = V::Load(query + h * width + c + V::kLanes);
          acc[h][t] = V::MulAdd(b, qb, V::MulAdd(a, qa, acc[h][t]));
        }
      }
    }
  }

  // sum[h] += p[h] * v over tokens [begin, end), kUnits units of columns starting at c
  template <int kHeads, int kUnits, Prefetch kPrefetch>
  static inline void Accumulate(const T* value, int width, int c, int begin, int end, const float* weights,
                                Feed feed, float* sum) {
    F acc[kHeads][2 * kUnits];
    for (int h = 0; h < kHeads; ++h)
      for (int i = 0; i < 2 * kUnits; ++i) acc[h][i] = V::Load(sum + h * width + c + i * V::kLanes);
    for (int t = begin; t < end; ++t) {
      if (kPrefetch == Prefetch::kPerRow) feed.Step();
      F p[kHeads];
      for (int h = 0; h < kHeads; ++h) p[h] = V::Set(weights[h * kMaxPageSize + t]);
      for (int u = 0; u < kUnits; ++u) {
        if (kPrefetch == Prefetch::kPerUnit) feed.Step();
        F a, b;
        V::Load2(value + t * width + c + u * kUnit, a, b);
        for (int h = 0; h < kHeads; ++h) {
          acc[h][2 * u] = V::MulAdd(p[h], a, acc[h][2 * u]);
          acc[h][2 * u + 1] = V::MulAdd(p[h], b, acc[h][2 * u + 1]);
        }
      }
    }
    for (int h = 0; h < kHeads; ++h)
      for (int i = 0; i < 2 * kUnits; ++i) V::Store(sum + h * width + c + i * V::kLanes, acc[h][i]);
  }

  // Weights as the accumulation reads them; returns their sum.
  static inline float Weigh(float* scores, int begin, int end, float max) {
    F total = V::Set(0.0f);
    for (int t = begin / V::kLanes * V::kLanes; t < end; t += V::kLanes) {
      const F p = Exp2<V>(V::Sub(V::Load(scores + t), V::Set(max)));
      V::Store(scores + t, p);
      total = V::Add(total, p);
    }
    return V::HorizontalSum(total);
  }

  static void PrepareQuery(const float* query, int count, int width, void* prepared) {
    float* out = static_cast<float*>(prepared);
    for (int i = 0; i < count * width; i += kUnit)
      for (int j = 0; j < kUnit; ++j) out[i + j] = query[i + V::template Column<T>(j)];
  }

  static void OrderedSum(const float* sum, int width, float scale, float* out) {
    for (int i = 0; i < width; i += kUnit)
      for (int j = 0; j < kUnit; ++j) out[i + V::template Column<T>(j)] = sum[i + j] * scale;
  }
};

// Math supplies Query, kUnit, Dot, Accumulate, Weigh; V supplies the float32 vectors.
template <class V, class T, class Math>
struct TileKernel {
  using F = typename V::F;
  using Query = typename Math::Query;
  static constexpr int kUnitBytes = Math::kUnit * sizeof(T);

  template <int kHeads, Prefetch kPrefetch>
  static inline void Scores(const Tile& tile, int width, const Query* query, float scale, float* scores) {
    const T* key = reinterpret_cast<const T*>(tile.key);
    for (int t = tile.begin & ~3; t < tile.end; t += 4) {
      const T* quad = key + static_cast<ptrdiff_t>(t) * width;
      F acc[kHeads][4];
      for (int h = 0; h < kHeads; ++h)
        for (int i = 0; i < 4; ++i) acc[h][i] = V::Set(0.0f);
      Feed feed{Ahead(tile.stream, quad, PrefetchDistance(kPrefetch)),
                      kPrefetch == Prefetch::kPerUnit ? kUnitBytes : static_cast<int>(width * sizeof(T))};
      Math::template Dot<kHeads, kPrefetch>(quad, width, query, feed, acc);
      for (int h = 0; h < kHeads; ++h)
        V::Store4Sums(scores + h * kMaxPageSize + t, acc[h][0], acc[h][1], acc[h][2], acc[h][3], scale);
    }
  }

  // Scores of tokens outside [begin, end) become -inf up to whole vectors on both sides.
  static inline void Mask(float* scores, int begin, int end) {
    for (int t = begin / V::kLanes * V::kLanes; t < begin; ++t) scores[t] = -__builtin_inff();
    for (int t = end; t % V::kLanes != 0; ++t) scores[t] = -__builtin_inff();
  }

  static inline float MaxScore(const float* scores, int begin, int end) {
    F best = V::Set(-__builtin_inff());
    for (int t = begin / V::kLanes * V::kLanes; t < end; t += V::kLanes) best = V::Max(V::Load(scores + t), best);
    return V::HorizontalMax(best);
  }

  // Turns one head's scores into weights relative to the running maximum and rescales what was summed before.
  static inline void Softmax(float* scores, int begin, int end, int width, float* max, float* denominator, float* sum) {
    const float tile_max = MaxScore(scores, begin, end);
    if (tile_max > *max) {
      // A first tile of nothing but -inf leaves zeros behind: rescaling them by any finite factor is right.
      const float factor = *max == -__builtin_inff() ? 0.0f : __builtin_exp2f(*max - tile_max);
      *denominator *= factor;
      const F f = V::Set(factor);
      for (int i = 0; i < width; i += V::kLanes) V::Store(sum + i, V::Mul(V::Load(sum + i), f));
      *max = tile_max;
    }
    *denominator += Math::Weigh(scores, begin, end, *max == -__builtin_inff() ? 0.0f : *max);
  }

  template <int kHeads, Prefetch kPrefetch>
  static inline void Values(const Tile& tile, int width, const float* weights, float* sum) {
    // One pass takes as many heads as there are registers for their sums over all columns (of common head widths), so
    // that memory is walked in order. The passes share the prefetching.
    constexpr int kUnits = V::kAccumulators / 2 < 4 ? V::kAccumulators / 2 : 4;
    constexpr int kPassHeads = kHeads < 2 ? kHeads : 2;
    constexpr int kStep = 16;
    const T* value = reinterpret_cast<const T*>(tile.value);
    const int units = width / Math::kUnit;
    const int passes = (units / kUnits + units % kUnits) * ((kHeads + kPassHeads - 1) / kPassHeads);
    const int step_bytes = (kPrefetch == Prefetch::kPerUnit ? kUnitBytes : units * kUnitBytes) * Math::kTokens / passes;
    for (int t = tile.begin; t < tile.end;) {
      // Whole steps start at multiples of the step, so that pairs of tokens stay aligned.
      int stop = (t / kStep + 1) * kStep;
      if (stop > tile.end) stop = tile.end;
      const T* from = value + static_cast<ptrdiff_t>(t) * width;
      Feed feed{Ahead(tile.stream, from, PrefetchDistance(kPrefetch)), step_bytes};
      int u = 0;
      for (; u + kUnits <= units; u += kUnits)
        Passes<kHeads, kPassHeads, kUnits, kPrefetch>(value, width, u * Math::kUnit, t, stop, weights, feed, sum);
      for (; u < units; ++u)
        Passes<kHeads, kPassHeads, 1, kPrefetch>(value, width, u * Math::kUnit, t, stop, weights, feed, sum);
      t = stop;
    }
  }

  template <int kHeads, int kPassHeads, int kUnits, Prefetch kPrefetch>
  static inline void Passes(const T* value, int width, int c, int begin, int end, const float* weights, Feed& feed,
                            float* sum) {
    constexpr int kRest = kHeads % kPassHeads;
    const int steps = (end - begin) / Math::kTokens * (kPrefetch == Prefetch::kPerUnit ? kUnits : 1);
    for (int h = 0; h + kPassHeads <= kHeads; h += kPassHeads) {
      Math::template Accumulate<kPassHeads, kUnits, kPrefetch>(value, width, c, begin, end, weights + h * kMaxPageSize,
                                                               feed, sum + h * width);
      feed.at += steps * feed.bytes;
    }
    if constexpr (kRest > 0) {
      constexpr int h = kHeads - kRest;
      Math::template Accumulate<kRest, kUnits, kPrefetch>(value, width, c, begin, end, weights + h * kMaxPageSize, feed,
                                                          sum + h * width);
      feed.at += steps * feed.bytes;
    }
  }

  template <int kHeads, Prefetch kPrefetch>
  static inline void HeadsOf(const Tile& tile, const Scaling& scaling, int width, const State& state, int head) {
    alignas(64) float scores[kHeads * kMaxPageSize];
    const Query* query = static_cast<const Query*>(state.query) + head * width;
    float* sum = state.sum + head * width;
    Scores<kHeads, kPrefetch>(tile, width, query, scaling.score, scores);
    for (int h = 0; h < kHeads; ++h) {
      float* row = scores + h * kMaxPageSize;
      if (scaling.softcap != 0.0f) {
        const float cap = scaling.softcap;
        for (int t = tile.begin; t < tile.end; ++t) row[t] = cap * __builtin_tanhf(row[t] / cap);
      }
      Mask(row, tile.begin, tile.end);
      Softmax(row, tile.begin, tile.end, width, state.max + head + h, state.denominator + head + h, sum + h * width);
    }
    Values<kHeads, kPrefetch>(tile, width, scores, sum);
  }
  template <int kHeads>
  static inline void Heads(const Tile& tile, const Scaling& scaling, int width, const State& state, int head) {
    constexpr Prefetch kFirst = kHeads == 1 ? Prefetch::kPerUnit : Prefetch::kPerRow;
    if (head == 0) {
      HeadsOf<kHeads, kFirst>(tile, scaling, width, state, head);
    } else {
      HeadsOf<kHeads, Prefetch::kNone>(tile, scaling, width, state, head);
    }
  }

  // A constant width lets the compiler unroll the loops over columns.
  template <int kWidth>
  static inline void Group(const Tile& tile, const Scaling& scaling, int group, int width, const State& state) {
    const int w = kWidth != 0 ? kWidth : width;
    int head = 0;
    if constexpr (V::kMaxHeads >= 4) {
      for (; head + 4 <= group; head += 4) Heads<4>(tile, scaling, w, state, head);
      if (group - head == 3) {
        Heads<3>(tile, scaling, w, state, head);
        return;
      }
    }
    for (; head + 2 <= group; head += 2) Heads<2>(tile, scaling, w, state, head);
    if (head < group) Heads<1>(tile, scaling, w, state, head);
  }

  static void Run(const Tile& tile, const Scaling& scaling, int group, int width, const State& state) {
    if (width == 128) return Group<128>(tile, scaling, group, width, state);
    if (width == 64) return Group<64>(tile, scaling, group, width, state);
    Group<0>(tile, scaling, group, width, state);
  }

  static constexpr Kernel Make(Instructions instructions) {
    return Kernel{instructions, Math::kUnit, sizeof(Query), Math::PrepareQuery, Run, Math::OrderedSum};
  }
};

template <class V, class T>
constexpr Kernel FloatKernel(Instructions instructions) {
  return TileKernel<V, T, FloatMath<V, T>>::Make(instructions);
}

template <class V>
const Kernel* FloatKernelTable(Instructions instructions, Type type) {
  static const Kernel kernels[3] = {FloatKernel<V, float>(instructions), FloatKernel<V, BFloat16>(instructions),
                                    FloatKernel<V, Float16>(instructions)};
  return &kernels[static_cast<int>(type)];
}

}  // namespace
}  // namespace apex
