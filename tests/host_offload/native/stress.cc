// Drives the attention kernel without Python, for sanitizers: random problems in buffers that end where they should, on
// threads of its own, compared with sums in double.
//
//     stress ROUNDS SEED
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "attention.h"
#include "convert.h"
#include "parallel.h"
#include "stream.h"

namespace {

using namespace apex;

// Runs tasks on a few threads, as the pool of the CPU backend does.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    ready_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void Schedule(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    ready_.notify_one();
  }

 private:
  void Loop() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        ready_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> tasks_;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

using Random = std::mt19937_64;

int64_t Draw(Random& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random);
}

template <class T>
T Pick(Random& random, std::initializer_list<T> values) {
  return values.begin()[Draw(random, 0, static_cast<int64_t>(values.size()) - 1)];
}

// Numbers of a type in a buffer of just their size, and the same as doubles.
struct Numbers {
  Numbers(Random& random, Type type, int64_t count) : type(type), count(count), bytes(new char[count * BytesOf(type)]) {
    std::normal_distribution<float> normal;
    std::vector<float> drawn(count);
    for (float& value : drawn) value = normal(random);
    Round(type, drawn.data(), count, bytes.get());
  }

  double operator[](int64_t i) const {
    if (type == Type::kFloat32) {
      float value;
      std::memcpy(&value, bytes.get() + 4 * i, sizeof value);
      return value;
    }
    uint16_t half;
    std::memcpy(&half, bytes.get() + 2 * i, sizeof half);
    if (type == Type::kBFloat16) return FromBits(static_cast<uint32_t>(half) << 16);
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
    return half >> 15 ? -magnitude : magnitude;
  }

  Type type;
  int64_t count;
  std::unique_ptr<char[]> bytes;
};

// The plain formula for one head of one row, in double; `key` and `value` are of (token, column).
template <class Key, class Value>
std::vector<double> Expected(const Problem& p, int64_t row, const std::vector<double>& query, Key key, Value value) {
  std::vector<double> scores, sum(p.H, 0.0);
  double max = -std::numeric_limits<double>::infinity(), denominator = 0.0;
  const int64_t first = p.FirstToken(row);
  for (int64_t token = first; token < p.lengths[row]; ++token) {
    double score = 0.0;
    for (int64_t h = 0; h < p.H; ++h) score += query[h] * key(token, h);
    score *= p.scale;
    if (p.softcap > 0) score = p.softcap * std::tanh(score / p.softcap);
    scores.push_back(score);
    max = std::max(max, score);
  }
  for (int64_t i = 0; i < static_cast<int64_t>(scores.size()); ++i) {
    const double weight = std::exp(scores[i] - max);
    denominator += weight;
    for (int64_t h = 0; h < p.H; ++h) sum[h] += weight * value(first + i, h);
  }
  for (double& column : sum) column /= denominator;
  sum.push_back(max + std::log(denominator));
  return sum;
}

void Fail(const std::string& what, const std::string& of) {
  std::fprintf(stderr, "wrong: %s in %s\n", what.c_str(), of.c_str());
  std::exit(1);
}

// One random problem: appended to or not, compared row by row.
void Attention(Random& random, Pool& pool, int threads) {
  const Type cache_type = Pick(random, {Type::kFloat32, Type::kBFloat16, Type::kFloat16});
  const Type query_type = Pick(random, {Type::kFloat32, Type::kBFloat16, Type::kFloat16});
  Problem p{};
  p.K = Pick<int64_t>(random, {1, 2, 3});
  p.N = p.K * Pick<int64_t>(random, {1, 2, 3, 4, 7, 8});
  p.H = Pick<int64_t>(random, {2, 8, 16, 40, 64, 80, 96, 128, 160, 256});
  p.S = 16 * Draw(random, 1, kMaxPageSize / 16);
  p.B = Draw(random, 1, 6);
  p.W = Draw(random, 1, Pick<int64_t>(random, {2, 6, 40}));
  p.P = p.B * p.W + Draw(random, 0, 2);
  p.scale = 1.0f / std::sqrt(static_cast<float>(p.H));
  p.softcap = Pick(random, {0.0f, 0.0f, 2.0f, 30.0f});
  p.window = Pick<int64_t>(random, {0, 0, 1, 17, 300});
  p.query_type = query_type, p.cache_type = cache_type;
  const bool packed = Draw(random, 0, 1), append = packed || Draw(random, 0, 1);
  p.new_type = packed ? query_type : cache_type;

  std::vector<int32_t> pages(p.P);
  for (int64_t i = 0; i < p.P; ++i) pages[i] = static_cast<int32_t>(i);
  std::shuffle(pages.begin(), pages.end(), random);
  std::vector<int32_t> table(pages.begin(), pages.begin() + p.B * p.W), lengths(p.B);
  for (int32_t& length : lengths) {
    const int64_t most = p.W * p.S;
    length = static_cast<int32_t>(Pick<int64_t>(random, {0, 1, most, most - 1, p.S, Draw(random, 0, most)}));
  }
  p.table = table.data(), p.lengths = lengths.data();

  const int64_t heads = packed ? p.N + 2 * p.K : p.N;
  const Numbers query(random, query_type, p.B * heads * p.H);
  const Numbers key(random, cache_type, p.B * p.K * p.H), value(random, cache_type, p.B * p.K * p.H);
  Numbers cache(random, cache_type, p.P * p.K * 2 * p.S * p.H);
  p.query = query.bytes.get(), p.query_stride = heads * p.H;
  p.cache = cache.bytes.get();
  if (append) {
    p.new_stride = packed ? p.query_stride : p.K * p.H;
    p.new_key = packed ? p.query + p.N * p.H * BytesOf(query_type) : key.bytes.get();
    p.new_value = packed ? p.new_key + p.K * p.H * BytesOf(query_type) : value.bytes.get();
  }
  const std::unique_ptr<float[]> out(new float[p.B * p.N * p.H]), lse(new float[p.B * p.N]);
  p.out = out.get(), p.lse = lse.get();
  const bool exact = query_type != Type::kBFloat16;
  const auto limit = static_cast<Instructions>(Draw(random, 0, static_cast<int>(MachineInstructions())));
  p.kernel = SelectKernel(cache_type, static_cast<int>(p.H), exact, limit);
  p.float_kernel = SelectKernel(Type::kFloat32, static_cast<int>(p.H), true, limit);
  const std::string of = "B" + std::to_string(p.B) + " N" + std::to_string(p.N) + " K" + std::to_string(p.K) + " H" +
                         std::to_string(p.H) + " S" + std::to_string(p.S) + " W" + std::to_string(p.W) + " types " +
                         std::to_string(static_cast<int>(query_type)) + std::to_string(static_cast<int>(cache_type)) +
                         " instructions " + std::to_string(static_cast<int>(limit));
  if (p.kernel == nullptr || p.float_kernel == nullptr) {
    if (p.H % 16 == 0) Fail("no kernel", of);
    return;
  }
  if (!CheckRows(p).empty()) Fail(CheckRows(p), of);

  for (int64_t row = 0; row < p.B; ++row)
    if (p.lengths[row] == 0) WriteEmptyRow(p, row);
  const int workers = static_cast<int>(Draw(random, 1, threads));
  const Plan plan = MakePlan(p, workers);
  Partials partials(p, plan);
  const int count = static_cast<int>(plan.chunks.size());
  Pieces::Run(
      count, workers - 1,
      [&](int i, int following) {
        RunChunk(p, plan.chunks[i], following < count ? &plan.chunks[following] : nullptr, partials);
      },
      [&pool](auto&& task) { pool.Schedule(std::forward<decltype(task)>(task)); });

  const double tolerance = p.kernel->instructions == Instructions::kAvx512Bf16 ? 0.05 : 1e-3;
  for (int64_t row = 0; row < p.B; ++row) {
    for (int64_t head = 0; head < p.N; ++head) {
      if (p.lengths[row] == 0) {
        if (p.lse[row * p.N + head] != -std::numeric_limits<float>::infinity()) Fail("an empty row", of);
        continue;
      }
      std::vector<double> own(p.H);
      for (int64_t h = 0; h < p.H; ++h) own[h] = query[row * p.query_stride + head * p.H + h];
      const auto at = [&](int64_t token, int64_t h, int64_t which) {
        const int64_t page = p.table[row * p.W + token / p.S], k = head / (p.N / p.K);
        return cache[((page * p.K + k) * 2 + which) * p.S * p.H + token % p.S * p.H + h];
      };
      const std::vector<double> expected = Expected(
          p, row, own, [&](int64_t token, int64_t h) { return at(token, h, 0); },
          [&](int64_t token, int64_t h) { return at(token, h, 1); });
      for (int64_t h = 0; h <= p.H; ++h) {
        const int64_t index = row * p.N + head;
        const double found = h < p.H ? p.out[index * p.H + h] : p.lse[index];
        if (!(std::abs(found - expected[h]) < tolerance)) Fail("row " + std::to_string(row), of);
      }
      // What was appended is there, rounded to the type of the cache.
      const int64_t last = p.lengths[row] - 1, k = head / (p.N / p.K);
      for (int64_t h = 0; append && h < p.H; ++h) {
        const double given = packed ? query[row * p.query_stride + (p.N + k) * p.H + h] : key[(row * p.K + k) * p.H + h];
        if (!(std::abs(at(last, h, 0) - given) <= 0.01 * std::abs(given) + 1e-6)) Fail("what was appended", of);
      }
    }
  }
}

// Pages that move, and bytes that are read, to their last.
void Memory(Random& random) {
  const int64_t bytes = 64 * Draw(random, 1, 100) + Pick<int64_t>(random, {0, 0, 1, 8, 63});
  const int64_t offset = Pick<int64_t>(random, {0, 0, 1, 16});
  const std::unique_ptr<char[]> from(new char[offset + bytes]), to(new char[offset + bytes]);
  for (int64_t i = 0; i < offset + bytes; ++i) from[i] = static_cast<char>(random());
  CopyPast(from.get() + offset, to.get() + offset, bytes);
  if (std::memcmp(from.get() + offset, to.get() + offset, bytes) != 0) Fail("a copy", std::to_string(bytes));
  if (XorBytes(from.get() + offset, bytes) != XorBytes(to.get() + offset, bytes)) Fail("xor", std::to_string(bytes));
}

// A call begins while helpers of the one before it may still wake up; several callers share the pool.
void Callers(Pool& pool, int callers, int rounds) {
  std::vector<std::thread> threads;
  std::atomic<int64_t> total{0};
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&] {
      for (int round = 0; round < rounds; ++round) {
        std::vector<int> marks(1 + round % 7, 0);
        Pieces::Run(
            static_cast<int>(marks.size()), 3, [&marks](int i, int) { ++marks[i]; },
            [&pool](auto&& task) { pool.Schedule(std::forward<decltype(task)>(task)); });
        for (const int mark : marks) total += mark;
        for (const int mark : marks)
          if (mark != 1) Fail("a piece", std::to_string(mark));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (total == 0) Fail("no piece", "all rounds");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: stress ROUNDS SEED\n");
    return 2;
  }
  const int rounds = std::atoi(argv[1]), threads = 4;
  Random random(std::strtoull(argv[2], nullptr, 10));
  Pool pool(threads);
  for (int round = 0; round < rounds; ++round) {
    Attention(random, pool, threads);
    Memory(random);
  }
  Callers(pool, 3, rounds);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    const uint64_t seed = random();
    callers.emplace_back([&pool, seed, rounds] {
      Random own(seed);
      for (int round = 0; round < rounds / 4; ++round) Attention(own, pool, threads);
    });
  }
  for (std::thread& caller : callers) caller.join();
  std::printf("%d rounds are right\n", rounds);
}
