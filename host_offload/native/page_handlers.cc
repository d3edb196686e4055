// The XLA FFI entry points that move whole pages.
#include <cstring>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "handlers.h"
#include "stream.h"

namespace apex {
namespace {

constexpr char kRead[] = "read_pages", kWrite[] = "write_pages";

// Checks kv [P, ...], ids [M], tiles [M, ...] for `function` and returns the bytes of one page through `page_bytes`.
ffi::Error CheckPages(const char* function, ffi::AnyBuffer cache, ffi::Buffer<ffi::S32> ids, ffi::AnyBuffer tiles,
                      int64_t* page_bytes) {
  const int64_t pages = cache.dimensions()[0], moved = ids.dimensions()[0];
  if (pages == 0 || tiles.dimensions()[0] != moved)
    return Invalid(function, "shapes of kv, pages and tiles do not fit together");
  *page_bytes = static_cast<int64_t>(cache.size_bytes()) / pages;
  if (static_cast<int64_t>(tiles.size_bytes()) != *page_bytes * moved || tiles.element_type() != cache.element_type())
    return Invalid(function, "tiles must be pages of the type and size of those in kv");
  for (int64_t i = 0; i < moved; ++i) {
    if (ids.typed_data()[i] >= pages)
      return Invalid(function, "page id " + std::to_string(ids.typed_data()[i]) +
                                   " is out of range, allowed are ids below " + std::to_string(pages) +
                                   ", and negative ones for none");
  }
  return ffi::Error::Success();
}

// Copies pages between the cache and consecutive tiles, in pieces of one page; negative ids are left out (read: zeros).
void CopyPages(Threads& threads, ffi::AnyBuffer cache, ffi::Buffer<ffi::S32> ids, ffi::AnyBuffer tiles,
               int64_t page_bytes, bool write) {
  char* pages = static_cast<char*>(cache.untyped_data());
  char* moved = static_cast<char*>(tiles.untyped_data());
  const int32_t* id = ids.typed_data();
  const int64_t count = ids.dimensions()[0];
  threads.Run(count, count * page_bytes < 2 * kBytesPerWorker ? 0 : threads.Count() - 1, [=](int i, int) {
    char* tile = moved + i * page_bytes;
    if (id[i] >= 0 && write) CopyPast(tile, pages + id[i] * page_bytes, page_bytes);
    if (id[i] >= 0 && !write) CopyPast(pages + id[i] * page_bytes, tile, page_bytes);
    if (id[i] < 0 && !write) std::memset(tile, 0, page_bytes);
  });
}

// Memory that nobody has touched yet is cleared by the system at the first touch, faster in huge pages than in small.
void AdviseHugePages(char* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t from = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (from + kHugePage - 1) / kHugePage * kHugePage, end = (from + bytes) / kHugePage * kHugePage;
  // A matter of speed alone: a system that refuses is no error.
  if (begin < end) static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
#endif
}

ffi::Error Read(Threads& threads, ffi::AnyBuffer cache, ffi::Buffer<ffi::S32> ids, ffi::AnyBuffer tiles, bool fresh) {
  int64_t page_bytes = 0;
  if (ffi::Error error = CheckPages(kRead, cache, ids, tiles, &page_bytes); error.failure()) return error;
  if (fresh) AdviseHugePages(static_cast<char*>(tiles.untyped_data()), static_cast<int64_t>(tiles.size_bytes()));
  CopyPages(threads, cache, ids, tiles, page_bytes, false);
  return ffi::Error::Success();
}

ffi::Error ReadPages(Threads threads, ffi::AnyBuffer cache, ffi::Buffer<ffi::S32> ids,
                     ffi::Result<ffi::AnyBuffer> tiles) {
  return Read(threads, cache, ids, *tiles, true);
}

ffi::Error ReadPagesInto(Threads threads, ffi::AnyBuffer cache, ffi::Buffer<ffi::S32> ids, ffi::AnyBuffer into,
                         ffi::Result<ffi::AnyBuffer> tiles) {
  if (into.untyped_data() != tiles->untyped_data())
    return Invalid(kRead, "the pages read do not share the memory that was given for them");
  return Read(threads, cache, ids, *tiles, false);
}

ffi::Error WritePages(Threads threads, ffi::AnyBuffer cache, ffi::Buffer<ffi::S32> ids, ffi::AnyBuffer tiles,
                      ffi::Result<ffi::AnyBuffer> cache_out) {
  int64_t page_bytes = 0;
  if (ffi::Error error = CheckPages(kWrite, cache, ids, tiles, &page_bytes); error.failure()) return error;
  if (cache.untyped_data() != cache_out->untyped_data())
    return Invalid(kWrite, "the updated cache does not share the memory of the old one");
  CopyPages(threads, cache, ids, tiles, page_bytes, true);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace apex

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(ApexReadPages, apex::ReadPages);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ApexReadPagesInto, apex::ReadPagesInto);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ApexWritePages, apex::WritePages);

#pragma GCC visibility pop
