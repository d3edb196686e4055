// Decode attention over paged KV: the whole problem, its split into chunks, and the work on one chunk.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "kernel.h"

namespace apex {

inline int64_t BytesOf(Type type) { return type == Type::kFloat32 ? 4 : 2; }

// Shapes by letter: B rows, N query heads, K kv heads, H head width, S page size, P pages, W page-table width.
struct Problem {
  int64_t B, N, K, H, S, P, W;
  Type query_type;
  Type cache_type;
  Type new_type;           // of new keys and values
  const char* query;       // [B, N, H]
  char* cache;             // [P, K, 2, S, H]
  const int32_t* table;    // [B, W]
  const int32_t* lengths;  // [B]
  const char* new_key;     // [B, K, H] or nullptr: then nothing is appended
  const char* new_value;   // [B, K, H]
  int64_t query_stride;    // elements between one row's queries and the next one's
  int64_t new_stride;      // the same for new keys and for new values
  float* out;              // [B, N, H]
  float* lse;              // [B, N]
  float scale;
  float softcap;           // 0: none
  int64_t window;          // 0: none
  const Kernel* kernel;
  const Kernel* float_kernel;  // of a float32 cache: what it prepares are plain floats

  int64_t ElementBytes() const { return BytesOf(cache_type); }
  int64_t PageBytes() const { return K * 2 * S * H * ElementBytes(); }
  int64_t FirstToken(int64_t row) const {
    return window > 0 && lengths[row] > window ? lengths[row] - window : 0;
  }
};

// Empty when every row can be read and written within bounds, else what is wrong with which row.
std::string CheckRows(const Problem& problem);

// Tokens [begin, end) of one row. `part` is where its partial result goes, or -1 when it is the whole row.
struct Chunk {
  int row;
  int part;
  int64_t begin;
  int64_t end;
};

struct Plan {
  std::vector<Chunk> chunks;
  int parts = 0;
  int64_t bytes = 0;  // of KV to be read
};

// Cuts rows into chunks at page boundaries, longest rows first and chunks ever smaller, so that `workers` threads end at
// about the same time.
Plan MakePlan(const Problem& problem, int workers);

// Memory for partial results of rows that were cut: per part N maxima, N denominators and N sums of H floats. It
// belongs to the thread that makes it and lasts until that thread makes the next.
struct Partials {
  Partials(const Problem& problem, const Plan& plan);

  float* Max(int part) { return floats + part * stride; }
  float* Denominator(int part) { return Max(part) + heads; }
  float* Sum(int part) { return Max(part) + header; }

  int64_t heads;
  int64_t header;
  int64_t stride;
  float* floats;
  std::vector<std::atomic<int>> open;  // per row: chunks not yet finished
  std::vector<int> first;              // per row: its first part
  std::vector<int> count;              // per row: its parts
};

// Appends (if the chunk holds the row's last token), attends, and writes the row or its part. Whoever finishes the last
// part of a row merges them. `following` is the chunk this thread takes next, or nullptr: its first page is prefetched.
void RunChunk(const Problem& problem, const Chunk& chunk, const Chunk* following, Partials& partials);

// What a padding row gets.
void WriteEmptyRow(const Problem& problem, int64_t row);

}  // namespace apex
