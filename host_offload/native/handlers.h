// What the XLA FFI entry points have in common.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace apex {

namespace ffi = xla::ffi;

// One thread reads this much in the time a second one needs to wake up.
constexpr int64_t kBytesPerWorker = 512 << 10;

// `function` is the Python function that the caller of this library knows.
inline ffi::Error Invalid(const char* function, const std::string& message) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, std::string(function) + ": " + message);
}

// The threads of the CPU backend, as an entry point is given them.
struct Threads {
  Threads(ffi::ThreadPool pool) : pool(pool) {}  // NOLINT

  int64_t Count() const { return pool.num_threads(); }

  // `Pieces::Run` on these.
  void Run(int64_t count, int64_t helpers, std::function<void(int, int)> work) {
    Pieces::Run(static_cast<int>(count), static_cast<int>(helpers), std::move(work),
                [this](auto&& task) { pool.Schedule(std::forward<decltype(task)>(task)); });
  }

  ffi::ThreadPool pool;
};

}  // namespace apex

template <>
struct xla::ffi::CtxBinding<apex::Threads> {
  using Ctx = xla::ffi::ThreadPool;
};
