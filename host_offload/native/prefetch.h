// How a loop over tokens prefetches what the stream brings next. Included inside the target region of its user.
#pragma once

#include "kernel.h"

namespace apex {
namespace {

// The place in the stream `distance` after `from`.
inline const char* Ahead(const Stream& stream, const void* from, ptrdiff_t distance) {
  const char* target = static_cast<const char*>(from) + distance;
  return target < stream.end ? target : stream.next + (target - stream.end);
}

// Prefetches one line in every kEvery bytes of the stream, in step with the loads: Unit goes with kBytes of them.
template <int kBytes, int kEvery>
struct Feed {
  const char* at;
  int done = 0;

  inline void Unit() {
    for (int i = 0; i < kBytes; i += 64, done += 64)
      if (done % kEvery == 0) __builtin_prefetch(at + done, 0, 2);
  }
};

struct NoFeed {
  inline void Unit() {}
};

// Fractions are of one core's streaming read, measured.
// Where loads run through memory evenly the hardware's own prefetching keeps up by itself, except that it stops at the
// end of every 4 KiB: a few lines help it across. More would take the miss buffers that the hardware uses better (0.65
// instead of 0.85). Where values are passed over more than once, loads come in bursts with pauses between them: then
// every line is prefetched, further ahead (0.74 instead of 0.60).
constexpr int kSparse = 512, kDense = 64;
constexpr ptrdiff_t PrefetchDistance(int every) { return every == kDense ? 8192 : 2048; }

}  // namespace
}  // namespace apex
