#include "cli/digest.hpp"

#include <xxhash.h>

#include <array>
#include <asio/error.hpp>
#include <memory>
#include <new>

#include "ropeway/error.hpp"

namespace ropeway::cli {
namespace {

class hasher {
 public:
  hasher() : state_(XXH3_createState()) {
    if (!state_) throw std::bad_alloc();
    XXH3_128bits_reset(state_.get());
  }
  void add(void const* data, std::size_t bytes) { XXH3_128bits_update(state_.get(), data, bytes); }
  void add(std::uint64_t number) {
    std::array<unsigned char, 8> bytes{};
    for (unsigned i = 0; i < 8; ++i) bytes[i] = static_cast<unsigned char>(number >> (8 * i));
    add(bytes.data(), bytes.size());
  }
  void add(std::string_view text) {
    add(std::uint64_t(text.size()));
    add(text.data(), text.size());
  }
  std::string text() const {
    XXH128_canonical_t bytes;
    XXH128_canonicalFromHash(&bytes, XXH3_128bits_digest(state_.get()));
    constexpr char digits[] = "0123456789abcdef";
    std::string out;
    for (unsigned char const byte : bytes.digest) {
      out += digits[byte >> 4];
      out += digits[byte & 15];
    }
    return out;
  }

 private:
  struct release {
    void operator()(XXH3_state_t* state) const noexcept { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, release> state_;
};

} // namespace

std::string digest(weights const& of, host_window& window, std::atomic<bool> const& stop) {
  hasher hash;
  for (auto const& tensor : of.entries()) {
    hash.add(tensor.info.name);
    hash.add(name(tensor.info.type));
    hash.add(std::uint64_t(tensor.info.dims.rank()));
    for (auto const extent : tensor.info.dims.extents()) hash.add(extent);
    hash.add(tensor.bytes);
    window.read(tensor.data, tensor.bytes, [&](std::span<std::byte const> piece) {
      if (stop) throw transfer_error(asio::error::operation_aborted, "interrupted");
      hash.add(piece.data(), piece.size());
    });
  }
  return hash.text();
}

} // namespace ropeway::cli
