// Uninitialized, 64-byte aligned workspace.

#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace torchcoinfer {

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(count > 0 ? count : 1) * sizeof(T), ALIGNMENT))) {}
  ~Buffer() {
    ::operator delete(data_, ALIGNMENT);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const {
    return data_;
  }

 private:
  static constexpr std::align_val_t ALIGNMENT{64};
  T* data_;
};

}  // namespace torchcoinfer
