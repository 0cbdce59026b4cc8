// Anonymous memory from the kernel: zero until touched, given back at once. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace ropeway::cli {

class mapping {
 public:
  mapping() = default;
  /// Throws `transfer_error(errc::out_of_memory)`.
  explicit mapping(std::uint64_t bytes);
  mapping(mapping&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  mapping& operator=(mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~mapping();
  std::byte* data() const noexcept { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

} // namespace ropeway::cli
