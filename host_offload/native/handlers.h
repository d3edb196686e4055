// What the XLA FFI entry points have in common.
#pragma once

#include <string>

#include "xla/ffi/api/ffi.h"

namespace apex {

namespace ffi = xla::ffi;

// One thread reads this much in the time a second one needs to wake up.
constexpr int64_t kBytesPerWorker = 512 << 10;

// `function` is the Python function that the caller of this library knows.
inline ffi::Error Invalid(const char* function, const std::string& message) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, std::string(function) + ": " + message);
}

}  // namespace apex
