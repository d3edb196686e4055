// What the XLA FFI entry points have in common.
#pragma once

#include <string>

#include "xla/ffi/api/ffi.h"

namespace apex {

namespace ffi = xla::ffi;

// One thread reads this much in the time a second one needs to wake up.
constexpr int64_t kBytesPerWorker = 512 << 10;

inline ffi::Error Invalid(const std::string& message) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "decode_attention: " + message);
}

}  // namespace apex
