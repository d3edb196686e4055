// What one instruction-set-specific kernel is, and how the one for this machine is chosen.
#pragma once

#include <cstddef>
#include <cstdint>

namespace apex {

enum class Type { kFloat32, kBFloat16, kFloat16 };

// Ordered from what runs everywhere to what few machines have.
enum class Instructions { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

constexpr int kMaxPageSize = 128;
constexpr int kMaxHeadWidth = 256;

// The page being read and the one after it, so that prefetching can run across the boundary between them.
struct Stream {
  const char* begin;
  const char* end;
  const char* next;
};

// Tokens [begin, end) of one (page, kv head): a key tile [S, H] and the value tile [S, H] behind it.
struct Tile {
  const char* key;
  const char* value;
  int begin;
  int end;
  Stream stream;
};

struct Scaling {
  float score;    // multiplies q.k; includes log2(e), since weights are powers of two
  float softcap;  // 0 means none; in units of the scaled score
};

// Running softmax of the G query heads that share one kv head. `sum` holds G rows of H in the kernel's own order.
struct State {
  const void* query;
  float* max;
  float* denominator;
  float* sum;
};

struct Kernel {
  Instructions instructions;
  // Head widths must be a multiple of this.
  int width_unit;
  // Bytes of one element of the query as the kernel wants it.
  int query_bytes;
  // Turns `count` heads of queries of type `type` into what `tile` reads, at most four bytes an element.
  void (*prepare_query)(Type type, const void* query, int count, int width, void* prepared);
  // Folds one tile into the states of `group` heads.
  void (*tile)(const Tile& tile, const Scaling& scaling, int group, int width, const State& state);
  // Writes `scale` times one head's sum in the order of the head's columns.
  void (*ordered_sum)(const float* sum, int width, float scale, float* out);
};

// The kernel for a cache of type `type`, using at most `limit`; `exact` asks for float32 weights and products.
// nullptr where no kernel can work on `width`.
const Kernel* SelectKernel(Type type, int width, bool exact, Instructions limit);

// The best instructions this machine has.
Instructions MachineInstructions();

// One table per instruction set, indexed by Type; but for the portable one they are there on x86-64 alone.
const Kernel* PortableKernel(Type type);
const Kernel* Avx2Kernel(Type type);
const Kernel* Avx512Kernel(Type type);
const Kernel* Avx512Bf16Kernel();

}  // namespace apex
