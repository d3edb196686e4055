// The tile kernel, written once over a small vector type and the arithmetic on it. Included by one source per
// instruction set, inside that source's target region: everything here has internal linkage, so that no function
// compiled for one instruction set can be picked by the linker for another.
#pragma once

#include "float_math.h"
#include "kernel.h"
#include "prefetch.h"

namespace apex {
namespace {

// Heads that share a kv head are worked on together, up to four. The scores of a token lie side by side in `kSlots`
// places, a power of two, so that a vector holds those of whole tokens: sums over lanes, maxima, powers and sums of
// weights are then shared by the heads.
//
// Math supplies Query, kUnit, kTokens, kGrain, LoadUnit, Dot, Accumulate and Weigh; V supplies vectors of float32, on which
// the operators of GCC's and Clang's vector extensions work.
template <class V, class T, class Math>
struct TileKernel {
  using F = typename V::F;
  using Query = typename Math::Query;
  static constexpr int kUnitBytes = Math::kUnit * sizeof(T);

  // How one head count and head width (0: any) is worked on.
  template <int kHeads, int kWidth>
  struct Shape {
    static constexpr int kSlots = kHeads == 3 ? 4 : kHeads;
    static constexpr int kBlock = V::kLanes / kSlots;  // tokens whose scores fill a vector
    // Tokens whose dot products are taken together. Two disturb the order of loads least; four heads load their queries
    // less often with four, which pays unless rows are short.
    static constexpr bool kShortRows = kWidth * sizeof(T) <= 128;
    static constexpr int kStep = kHeads == 1 || (kHeads == 4 && kBlock >= 4 && !kShortRows) ? 4 : 2;
    // A pass over values takes all heads, so that each is loaded and widened once, and as many columns as then have
    // registers.
    static constexpr int kRegisters = V::kAccumulators / 2 / kSlots;  // in units of columns
    static constexpr int kAllUnits = kWidth == 0 ? 1 : kWidth / Math::kUnit;
    static constexpr int kUnits = kAllUnits < kRegisters ? kAllUnits : kRegisters;
    static constexpr bool kOnePass = kWidth != 0 && kUnits == kAllUnits;
    // Tokens that one pass over values takes before the next one goes over them again.
    static constexpr int kPassTokens = kOnePass ? kMaxPageSize : 16;
    static constexpr int kEvery = kOnePass && !(kHeads > 1 && kIsSlow<T>) ? kSparse : kDense;
  };

  // Calls `work` with what prefetches ahead of `from` for loads of kTokens units at a time.
  template <class S, bool kFeed, int kTokens, class Work>
  static inline void WithFeed(const Tile& tile, const T* from, Work work) {
    if constexpr (kFeed) {
      work(Feed<kTokens * kUnitBytes, S::kEvery>{Ahead(tile.stream, from, PrefetchDistance(S::kEvery))});
    } else {
      work(NoFeed{});
    }
  }

  template <int kHeads, int kWidth, bool kFeed>
  static inline void Scores(const Tile& tile, int width, const Query* query, float scale, float* scores) {
    using S = Shape<kHeads, kWidth>;
    constexpr int kBlock = S::kBlock;
    for (int t = tile.begin / kBlock * kBlock; t < tile.end; t += kBlock) {
      F quads[V::kLanes / 4];
      for (int s = 0; s < kBlock; s += S::kStep) {
        F acc[S::kStep][kHeads];
        for (int i = 0; i < S::kStep; ++i)
          for (int h = 0; h < kHeads; ++h) acc[i][h] = V::Set(0.0f);
        if (t + s < tile.end && t + s + S::kStep > tile.begin) {
          const T* rows = reinterpret_cast<const T*>(tile.key) + static_cast<ptrdiff_t>(t + s) * width;
          WithFeed<S, kFeed, 1>(
              tile, rows, [&](auto feed) { Dot<S::kStep, kHeads>(rows, width, query, feed, acc); });
        }
        AddLanes<S, kHeads>(acc, quads + s * S::kSlots / 4);
      }
      V::Store(scores + t * S::kSlots, V::SumAcrossLanes(quads) * V::Set(scale));
    }
  }

  // acc[t][h] += q[h] * k[t]. One head reads token by token, in the order of memory; several share a load of the query
  // between tokens.
  template <int kTokens, int kHeads, class Prefetch>
  static inline void Dot(const T* key, int width, const Query* query, Prefetch feed, F (&acc)[kTokens][kHeads]) {
    if (kHeads == 1) {
      for (int t = 0; t < kTokens; ++t) {
        for (int c = 0; c < width; c += Math::kUnit) {
          feed.Unit();
          acc[t][0] = Math::Dot(acc[t][0], Math::LoadUnit(key + c), Math::LoadUnit(query + c));
        }
        key += width;
        V::KeepOrder(acc[t][0], key);
      }
      return;
    }
    for (int c = 0; c < width; c += Math::kUnit) {
      typename Math::Columns k[kTokens];
      for (int t = 0; t < kTokens; ++t) {
        feed.Unit();
        k[t] = Math::LoadUnit(key + t * width + c);
      }
      for (int h = 0; h < kHeads; ++h) {
        const typename Math::Columns q = Math::LoadUnit(query + h * width + c);
        for (int t = 0; t < kTokens; ++t) acc[t][h] = Math::Dot(acc[t][h], k[t], q);
      }
    }
  }

  // A place without a head gets the sums of the last one.
  template <class S, int kHeads>
  static inline void AddLanes(const F (&acc)[S::kStep][kHeads], F* quads) {
    for (int q = 0; q < S::kStep * S::kSlots / 4; ++q) {
      F four[4];
      for (int i = 0; i < 4; ++i) {
        const int place = q * 4 + i, head = place % S::kSlots;
        four[i] = acc[place / S::kSlots][head < kHeads ? head : kHeads - 1];
      }
      quads[q] = V::SumWithinLanes(four[0], four[1], four[2], four[3]);
    }
  }

  // Turns scores [first, last) into weights relative to the running maxima, and rescales what was summed before where a
  // maximum grew.
  template <int kHeads, int kSlots>
  static inline void Softmax(float* scores, int first, int last, int width, float* max, float* denominator,
                             float* sum) {
    F best = V::Set(-__builtin_inff());
    for (int i = first; i < last; i += V::kLanes) best = V::Max(V::Load(scores + i), best);
    const F old = V::template Repeat<kSlots>(max);
    best = V::Max(old, V::template Fold<kSlots>(best, V::Max));
    // As long as all scores were -inf, weights are relative to zero.
    const F origin = best == V::Set(-__builtin_inff()) ? V::Set(0.0f) : best;
    alignas(64) float slots[V::kLanes];
    if ((V::Greater(best, old) & ((1u << kHeads) - 1)) != 0) {
      V::Store(slots, Exp2<V>(old - origin));
      for (int h = 0; h < kHeads; ++h) Rescale(slots[h], width, denominator + h, sum + h * width);
      V::Store(slots, best);
      for (int h = 0; h < kHeads; ++h) max[h] = slots[h];
    }
    const F weights = Math::template Weigh<kSlots>(scores, first, last, origin);
    V::Store(slots, V::template Fold<kSlots>(weights, [](F a, F b) { return a + b; }));
    for (int h = 0; h < kHeads; ++h) denominator[h] += slots[h];
  }

  static inline void Rescale(float factor, int width, float* denominator, float* sum) {
    *denominator *= factor;
    const F f = V::Set(factor);
    for (int i = 0; i < width; i += V::kLanes) V::Store(sum + i, V::Load(sum + i) * f);
  }

  template <int kHeads, int kWidth, bool kFeed>
  static inline void Values(const Tile& tile, int width, const float* weights, float* sum) {
    using S = Shape<kHeads, kWidth>;
    const T* value = reinterpret_cast<const T*>(tile.value);
    for (int t = tile.begin; t < tile.end;) {
      // Whole passes start at multiples of their length, so that pairs of tokens stay aligned.
      int stop = (t / S::kPassTokens + 1) * S::kPassTokens;
      if (stop > tile.end) stop = tile.end;
      for (int c = 0; c < width; c += S::kUnits * Math::kUnit) {
        // Passes over columns share the prefetching.
        const T* from = value + static_cast<ptrdiff_t>(t) * width + (stop - t) * c;
        WithFeed<S, kFeed, Math::kTokens>(tile, from, [&](auto feed) {
          Math::template Accumulate<S::kSlots, kHeads, S::kUnits>(value, width, c, t, stop, weights, feed, sum);
        });
      }
      t = stop;
    }
  }

  // Takes whole vectors: what lies in them beside the scores of the tile's tokens is masked afterwards.
  static inline void Cap(float* scores, int first, int last, float cap) {
    for (int i = first; i < last; i += V::kLanes) V::Store(scores + i, SoftCap<V>(V::Load(scores + i), cap));
  }

  // Places of tokens that are not seen, up to whole vectors on both sides, get -inf.
  static inline void Mask(float* scores, int first, int begin, int end, int last) {
    for (int i = first; i < begin; ++i) scores[i] = -__builtin_inff();
    for (int i = end; i < last; ++i) scores[i] = -__builtin_inff();
  }

  template <int kHeads, int kWidth, bool kFeed>
  static void HeadsOf(const Tile& tile, const Scaling& scaling, int any_width, const State& state, int head) {
    constexpr int kSlots = Shape<kHeads, kWidth>::kSlots, kGrain = Math::kGrain;
    // A constant width lets the compiler unroll the loops over columns.
    const int width = kWidth != 0 ? kWidth : any_width;
    const Query* query = static_cast<const Query*>(state.query) + head * width;
    float* sum = state.sum + head * width;
    alignas(64) float scores[kSlots * kMaxPageSize];
    Scores<kHeads, kWidth, kFeed>(tile, width, query, scaling.score, scores);
    const int begin = tile.begin * kSlots, end = tile.end * kSlots;
    const int first = begin / kGrain * kGrain, last = (end + kGrain - 1) / kGrain * kGrain;
    if (scaling.softcap != 0.0f) Cap(scores, first, last, scaling.softcap);
    Mask(scores, first, begin, end, last);
    Softmax<kHeads, kSlots>(scores, first, last, width, state.max + head, state.denominator + head, sum);
    Values<kHeads, kWidth, kFeed>(tile, width, scores, sum);
  }

  // Only the first heads of a group prefetch: the others find the tile in cache.
  template <int kHeads, int kWidth>
  static inline void Heads(const Tile& tile, const Scaling& scaling, int width, const State& state, int head) {
    if (head == 0) {
      HeadsOf<kHeads, kWidth, true>(tile, scaling, width, state, head);
    } else {
      HeadsOf<kHeads, kWidth, false>(tile, scaling, width, state, head);
    }
  }

  template <int kWidth>
  static inline void Group(const Tile& tile, const Scaling& scaling, int group, int width, const State& state) {
    int head = 0;
    if constexpr (V::kMaxHeads >= 4) {
      for (; head + 4 <= group; head += 4) Heads<4, kWidth>(tile, scaling, width, state, head);
      if (group - head == 3) return Heads<3, kWidth>(tile, scaling, width, state, head);
      if (group - head == 2) return Heads<2, kWidth>(tile, scaling, width, state, head);
    }
    for (; head < group; ++head) Heads<1, kWidth>(tile, scaling, width, state, head);
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
