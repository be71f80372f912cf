// Calls to torch through its stable C interface. For the register*.cpp files only.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/shim_utils.h>

// Torch 2.11 knows the check without what went wrong, under this name.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace torchcoinfer {

// An op without overload name; `stack` holds its arguments and then its results.
inline void call_torch(const char* op, StableIValue* stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION));
}

}  // namespace torchcoinfer
