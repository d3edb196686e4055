#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "convert.h"

namespace apex {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr double kLn2 = 0.6931471805599453;
// A chunk smaller than this costs more in start-up than it gains in balance.
constexpr int64_t kMinChunkBytes = 256 << 10;
// A chunk is this part of a thread's share of what is left: large ones first, small ones to even out the end.
constexpr int64_t kShare = 4;
// Sums over more tokens lose digits in float32; merging parts of this size does not.
constexpr int64_t kMaxChunkTokens = 1024;

// Grows and stays with its thread: allocating per call would fault in fresh pages every time.
struct Scratch {
  std::vector<char> bytes;
  char* Reserve(size_t size) {
    if (bytes.size() < size + 64) bytes.resize(size + 64);
    return bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64;
  }
};

// For one chunk at a time.
Scratch& ChunkScratch() {
  thread_local Scratch scratch;
  return scratch;
}

// For the partial results of one call; it belongs to the calling thread, which waits for all that use it.
Scratch& CallScratch() {
  thread_local Scratch scratch;
  return scratch;
}

// Floats before the sums of a part: its maxima and denominators, up to whole cache lines.
int64_t HeaderFloats(int64_t heads) { return (2 * heads + 15) / 16 * 16; }

char* PageAt(const Problem& p, int64_t row, int64_t index) {
  return p.cache + p.table[row * p.W + index] * p.PageBytes();
}

void Store(const Problem& p, const char* from, char* to) {
  if (p.new_type == p.cache_type) {
    std::memcpy(to, from, p.H * p.ElementBytes());
    return;
  }
  float floats[kMaxHeadWidth];
  p.float_kernel->prepare_query(p.new_type, from, 1, static_cast<int>(p.H), floats);
  Round(p.cache_type, floats, p.H, to);
}

void Append(const Problem& p, int64_t row) {
  const int64_t token = p.lengths[row] - 1, width = p.H * p.ElementBytes();
  char* page = PageAt(p, row, token / p.S);
  for (int64_t k = 0; k < p.K; ++k) {
    const int64_t from = (row * p.new_stride + k * p.H) * BytesOf(p.new_type);
    char* key = page + (2 * k * p.S + token % p.S) * width;
    Store(p, p.new_key + from, key);
    Store(p, p.new_value + from, key + p.S * width);
  }
}

void Attend(const Problem& p, const Chunk& chunk, const Chunk* following, const char* query, float* max,
            float* denominator, float* sum) {
  const int64_t group = p.N / p.K, tile_bytes = p.S * p.H * p.ElementBytes();
  const Scaling scaling{p.scale * kLog2E, p.softcap * kLog2E};
  const int64_t last = (chunk.end - 1) / p.S;
  for (int64_t index = chunk.begin / p.S; index <= last; ++index) {
    const char* page = PageAt(p, chunk.row, index);
    const char* next = index < last            ? PageAt(p, chunk.row, index + 1)
                       : following != nullptr ? PageAt(p, following->row, following->begin / p.S)
                                              : page;
    const int begin = static_cast<int>(std::max(chunk.begin - index * p.S, int64_t{0}));
    const int end = static_cast<int>(std::min(chunk.end - index * p.S, p.S));
    for (int64_t k = 0; k < p.K; ++k) {
      const char* key = page + 2 * k * tile_bytes;
      const Tile tile{key, key + tile_bytes, begin, end, Stream{page, page + p.PageBytes(), next}};
      const int64_t head = k * group;
      const State state{query + head * p.H * p.kernel->query_bytes, max + head, denominator + head, sum + head * p.H};
      p.kernel->tile(tile, scaling, static_cast<int>(group), static_cast<int>(p.H), state);
    }
  }
}

void WriteHead(const Problem& p, int64_t row, int64_t head, float max, float denominator, const float* sum) {
  const int64_t index = row * p.N + head;
  p.kernel->ordered_sum(sum, static_cast<int>(p.H), 1.0f / denominator, p.out + index * p.H);
  p.lse[index] = static_cast<float>((max + std::log2(static_cast<double>(denominator))) * kLn2);
}

// sum += factor * part, or sum = factor * part where `is_first`, which may be in place.
void AddScaled(const float* part, float factor, int64_t count, bool is_first, float* sum) {
  if (is_first) {
    for (int64_t i = 0; i < count; ++i) sum[i] = factor * part[i];
  } else {
    for (int64_t i = 0; i < count; ++i) sum[i] += factor * part[i];
  }
}

void Merge(const Problem& p, int64_t row, Partials& partials) {
  const int first = partials.first[row], count = partials.count[row];
  for (int64_t head = 0; head < p.N; ++head) {
    float max = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < count; ++i) max = std::max(max, partials.Max(first + i)[head]);
    float* sum = partials.Sum(first) + head * p.H;
    float denominator = 0.0f;
    for (int i = 0; i < count; ++i) {
      const float part_max = partials.Max(first + i)[head];
      const float factor = part_max == max ? 1.0f : std::exp2(part_max - max);
      denominator += factor * partials.Denominator(first + i)[head];
      AddScaled(partials.Sum(first + i) + head * p.H, factor, p.H, i == 0, sum);
    }
    WriteHead(p, row, head, max, denominator, sum);
  }
}

}  // namespace

std::string CheckRows(const Problem& p) {
  for (int64_t row = 0; row < p.B; ++row) {
    const int64_t length = p.lengths[row];
    if (length < 0 || length > p.W * p.S) {
      return "row " + std::to_string(row) + " has length " + std::to_string(length) + ", allowed are 0 to " +
             std::to_string(p.W * p.S) + " (" + std::to_string(p.W) + " pages of " + std::to_string(p.S) + " tokens)";
    }
    if (length == 0) continue;
    for (int64_t index = p.FirstToken(row) / p.S; index <= (length - 1) / p.S; ++index) {
      const int64_t page = p.table[row * p.W + index];
      if (page < 0 || page >= p.P) {
        return "row " + std::to_string(row) + " has page id " + std::to_string(page) + " at position " +
               std::to_string(index) + " of its page table, allowed are 0 to " + std::to_string(p.P - 1);
      }
    }
  }
  return {};
}

Plan MakePlan(const Problem& p, int workers) {
  const int64_t token_bytes = p.PageBytes() / p.S;
  const int64_t least = std::max(kMinChunkBytes / token_bytes, p.S);
  int64_t open = 0;
  std::vector<int> rows;
  for (int64_t row = 0; row < p.B; ++row) {
    if (p.lengths[row] == 0) continue;
    open += p.lengths[row] - p.FirstToken(row);
    rows.push_back(static_cast<int>(row));
  }
  Plan plan;
  plan.bytes = open * token_bytes;
  if (workers > 1) {
    std::stable_sort(rows.begin(), rows.end(), [&p](int a, int b) {
      return p.lengths[a] - p.FirstToken(a) > p.lengths[b] - p.FirstToken(b);
    });
  }
  for (const int row : rows) {
    const int64_t begin = p.FirstToken(row), end = p.lengths[row];
    for (int64_t at = begin; at < end;) {
      const int64_t share = workers > 1 ? open / (workers * kShare) : open;
      const int64_t target = std::min(std::max(share, least), kMaxChunkTokens);
      const int64_t pieces = std::max((end - at + target / 2) / target, int64_t{1});
      const int64_t step = ((end - at + pieces - 1) / pieces + p.S - 1) / p.S * p.S;
      const int64_t stop = std::min(at / p.S * p.S + step, end);
      const bool whole = at == begin && stop == end;
      plan.chunks.push_back({row, whole ? -1 : plan.parts++, at, stop});
      open -= stop - at;
      at = stop;
    }
  }
  return plan;
}

Partials::Partials(const Problem& p, const Plan& plan)
    : heads(p.N),
      header(HeaderFloats(p.N)),
      stride(header + (p.N * p.H + 15) / 16 * 16),
      floats(reinterpret_cast<float*>(CallScratch().Reserve(plan.parts * stride * sizeof(float)))),
      open(p.B),
      first(p.B, 0),
      count(p.B, 0) {
  for (const Chunk& chunk : plan.chunks) {
    if (chunk.part < 0) continue;
    if (count[chunk.row]++ == 0) first[chunk.row] = chunk.part;
  }
  for (int64_t row = 0; row < p.B; ++row) open[row].store(count[row], std::memory_order_relaxed);
}

void RunChunk(const Problem& p, const Chunk& chunk, const Chunk* following, Partials& partials) {
  if (p.new_key != nullptr && chunk.end == p.lengths[chunk.row]) Append(p, chunk.row);
  const int64_t elements = p.N * p.H, header = HeaderFloats(p.N);
  char* query = ChunkScratch().Reserve((2 * elements + header) * sizeof(float));
  p.kernel->prepare_query(p.query_type, p.query + chunk.row * p.query_stride * BytesOf(p.query_type),
                          static_cast<int>(p.N), static_cast<int>(p.H), query);

  const bool whole = chunk.part < 0;
  float* max = whole ? reinterpret_cast<float*>(query) + elements : partials.Max(chunk.part);
  float* denominator = max + p.N;
  float* sum = max + header;
  std::fill_n(sum, elements, 0.0f);
  std::fill_n(max, p.N, -std::numeric_limits<float>::infinity());
  std::fill_n(denominator, p.N, 0.0f);
  Attend(p, chunk, following, query, max, denominator, sum);

  if (whole) {
    for (int64_t head = 0; head < p.N; ++head)
      WriteHead(p, chunk.row, head, max[head], denominator[head], sum + head * p.H);
  } else if (partials.open[chunk.row].fetch_sub(1, std::memory_order_acq_rel) == 1) {
    Merge(p, chunk.row, partials);
  }
}

void WriteEmptyRow(const Problem& p, int64_t row) {
  std::fill_n(p.out + row * p.N * p.H, p.N * p.H, 0.0f);
  std::fill_n(p.lse + row * p.N, p.N, -std::numeric_limits<float>::infinity());
}

}  // namespace apex
