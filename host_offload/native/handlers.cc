// The XLA FFI entry points of attention.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "attention.h"
#include "handlers.h"
#include "stream.h"

namespace apex {
namespace {

using Integers = ffi::Buffer<ffi::S32>;
using Floats = ffi::ResultBuffer<ffi::F32>;

ffi::Error Refuse(const std::string& message) { return Invalid("decode_attention", message); }

bool TypeOf(ffi::DataType dtype, Type* type) {
  if (dtype == ffi::DataType::F32) *type = Type::kFloat32;
  else if (dtype == ffi::DataType::BF16) *type = Type::kBFloat16;
  else if (dtype == ffi::DataType::F16) *type = Type::kFloat16;
  else return false;
  return true;
}

struct Options {
  float scale;
  float softcap;
  int64_t window;
  int64_t max_workers;   // 0: as many as the pool has threads
  int64_t instructions;  // upper limit, in the order of Instructions
};

int Workers(const Problem& problem, const Options& options, int64_t threads) {
  const int64_t most = options.max_workers > 0 ? std::min(options.max_workers, threads) : threads;
  int64_t tokens = 0;
  for (int64_t row = 0; row < problem.B; ++row) tokens += problem.lengths[row] - problem.FirstToken(row);
  const int64_t useful = tokens * (problem.PageBytes() / problem.S) / kBytesPerWorker;
  return static_cast<int>(std::max(std::min(most, useful), int64_t{1}));
}

ffi::Error Run(Threads& threads, Problem& problem, const Options& options) {
  std::string wrong = CheckRows(problem);
  if (!wrong.empty()) return Refuse(wrong);
  for (int64_t row = 0; row < problem.B; ++row)
    if (problem.lengths[row] == 0) WriteEmptyRow(problem, row);
  const int workers = Workers(problem, options, threads.Count());
  const Plan plan = MakePlan(problem, workers);
  Partials partials(problem, plan);
  const int count = static_cast<int>(plan.chunks.size());
  threads.Run(count, workers - 1, [&](int i, int following) {
    RunChunk(problem, plan.chunks[i], following < count ? &plan.chunks[following] : nullptr, partials);
  });
  return ffi::Error::Success();
}

// A packed query has the new keys and values of its row behind its heads.
ffi::Error Describe(Problem* problem, ffi::AnyBuffer query, ffi::AnyBuffer cache, Integers table, Integers lengths,
                    Floats out, Floats lse, const Options& options, bool packed = false) {
  const auto q = query.dimensions(), kv = cache.dimensions(), pages = table.dimensions();
  if (q.size() != 3 || kv.size() != 5 || pages.size() != 2) return Refuse("wrong rank of q, kv or page_table");
  if (!TypeOf(query.element_type(), &problem->query_type) || !TypeOf(cache.element_type(), &problem->cache_type))
    return Refuse("q and kv must be float32, bfloat16 or float16");
  problem->P = kv[0], problem->K = kv[1], problem->S = kv[3], problem->W = pages[1];
  problem->B = q[0], problem->N = packed ? q[1] - 2 * kv[1] : q[1], problem->H = q[2];
  problem->query_stride = q[1] * q[2];
  if (kv[2] != 2 || kv[4] != q[2] || problem->K == 0 || problem->N < 1 || problem->N % kv[1] != 0 || pages[0] != q[0] ||
      lengths.dimensions().size() != 1 || lengths.dimensions()[0] != q[0] || problem->S > kMaxPageSize ||
      problem->S % 16 != 0 || problem->H > kMaxHeadWidth)
    return Refuse("shapes of q, kv, page_table and lengths do not fit together");
  problem->query = static_cast<const char*>(query.untyped_data());
  problem->cache = static_cast<char*>(cache.untyped_data());
  problem->table = table.typed_data();
  problem->lengths = lengths.typed_data();
  problem->out = out->typed_data();
  problem->lse = lse->typed_data();
  problem->scale = options.scale, problem->softcap = options.softcap, problem->window = options.window;
  // Products of bfloat16 would round any other query.
  const bool exact = problem->query_type != Type::kBFloat16;
  const auto limit = static_cast<Instructions>(options.instructions);
  const int width = static_cast<int>(problem->H);
  problem->kernel = SelectKernel(problem->cache_type, width, exact, limit);
  problem->float_kernel = SelectKernel(Type::kFloat32, width, true, limit);
  if (problem->kernel == nullptr) return Refuse("no kernel for head width " + std::to_string(problem->H));
  return ffi::Error::Success();
}

ffi::Error Attend(Threads threads, ffi::AnyBuffer query, ffi::AnyBuffer cache, Integers table, Integers lengths,
                  Floats out, Floats lse, Options options) {
  Problem problem{};
  ffi::Error error = Describe(&problem, query, cache, table, lengths, out, lse, options);
  return error.failure() ? error : Run(threads, problem, options);
}

// The problem's new keys and values are set.
ffi::Error RunInPlace(Threads& threads, Problem& problem, const Options& options, ffi::AnyBuffer cache,
                      ffi::AnyBuffer cache_out) {
  if (cache.untyped_data() != cache_out.untyped_data())
    return Refuse("the updated cache does not share the memory of the old one");
  return Run(threads, problem, options);
}

ffi::Error AppendAttend(Threads threads, ffi::AnyBuffer query, ffi::AnyBuffer cache, Integers table, Integers lengths,
                        ffi::AnyBuffer new_key, ffi::AnyBuffer new_value, Floats out, Floats lse,
                        ffi::Result<ffi::AnyBuffer> cache_out, Options options) {
  Problem problem{};
  ffi::Error error = Describe(&problem, query, cache, table, lengths, out, lse, options);
  if (error.failure()) return error;
  const size_t appended = problem.B * problem.K * problem.H;
  for (const ffi::AnyBuffer& added : {new_key, new_value})
    if (added.element_type() != cache.element_type() || added.element_count() != appended)
      return Refuse("new keys and values must be [B, K, H] in the type of the cache");
  problem.new_type = problem.cache_type;
  problem.new_stride = problem.K * problem.H;
  problem.new_key = static_cast<const char*>(new_key.untyped_data());
  problem.new_value = static_cast<const char*>(new_value.untyped_data());
  return RunInPlace(threads, problem, options, cache, *cache_out);
}

ffi::Error PackedAttend(Threads threads, ffi::AnyBuffer qkv, ffi::AnyBuffer cache, Integers table, Integers lengths,
                        Floats out, Floats lse, ffi::Result<ffi::AnyBuffer> cache_out, Options options) {
  Problem problem{};
  ffi::Error error = Describe(&problem, qkv, cache, table, lengths, out, lse, options, true);
  if (error.failure()) return error;
  problem.new_type = problem.query_type;
  problem.new_stride = problem.query_stride;
  problem.new_key = problem.query + problem.N * problem.H * BytesOf(problem.query_type);
  problem.new_value = problem.new_key + problem.K * problem.H * BytesOf(problem.query_type);
  return RunInPlace(threads, problem, options, cache, *cache_out);
}

// Reads every byte of a buffer once, with the same threads and pieces as attention would: the yardstick for it.
ffi::Error ReadStream(Threads threads, ffi::AnyBuffer data, ffi::ResultBuffer<ffi::U32> checksum) {
  constexpr int64_t kPieceBytes = 1 << 20;
  const int64_t bytes = static_cast<int64_t>(data.size_bytes());
  const char* from = static_cast<const char*>(data.untyped_data());
  std::atomic<uint64_t> total{0};
  threads.Run((bytes + kPieceBytes - 1) / kPieceBytes, threads.Count() - 1, [&](int i, int) {
    const int64_t begin = i * kPieceBytes;
    total.fetch_xor(XorBytes(from + begin, std::min(kPieceBytes, bytes - begin)), std::memory_order_relaxed);
  });
  if (checksum->element_count() != 2) return Invalid("read_stream", "the checksum has two halves");
  checksum->typed_data()[0] = static_cast<uint32_t>(total.load());
  checksum->typed_data()[1] = static_cast<uint32_t>(total.load() >> 32);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace apex

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(apex::Options, StructMember<float>("scale"), StructMember<float>("softcap"),
                                      StructMember<int64_t>("window"), StructMember<int64_t>("max_workers"),
                                      StructMember<int64_t>("instructions"));

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(ApexDecodeAttention, apex::Attend);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ApexAppendDecodeAttention, apex::AppendAttend);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ApexPackedDecodeAttention, apex::PackedAttend);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ApexReadStream, apex::ReadStream);

extern "C" int ApexMachineInstructions() { return static_cast<int>(apex::MachineInstructions()); }

// The interface that all entry points were compiled for: major and minor number in 16 bits each.
extern "C" int ApexFfiVersion() { return XLA_FFI_API_MAJOR << 16 | XLA_FFI_API_MINOR; }

#pragma GCC visibility pop
