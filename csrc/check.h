// Argument checks: op, argument, expected, got. No torch header; std::runtime_error becomes Python's RuntimeError.

#pragma once

#include <sstream>
#include <stdexcept>

namespace torchcoinfer {

template <typename Expected, typename Got>
inline void check(bool ok, const char* op, const char* argument, const Expected& expected, const Got& got) {
  if (ok) return;
  std::ostringstream message;
  message << "torchcoinfer::" << op << ": argument '" << argument << "': expected " << expected << ", got " << got;
  throw std::runtime_error(message.str());
}

}  // namespace torchcoinfer
