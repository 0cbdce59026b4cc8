// Models made of random bytes, in any memory, and the oracle that says what of them must arrive.
// Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "memory/memory.hpp"
#include "ropeway/destinations.hpp"
#include "ropeway/shared_memory.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::testing {

/// Where tensors of a test lie.
class memory_kind {
 public:
  virtual ~memory_kind() = default;
  virtual device where() const = 0;
  virtual std::shared_ptr<std::byte> allocate(std::uint64_t bytes) = 0;
  /// Both return when the bytes are there.
  virtual void write(std::byte* to, std::span<std::byte const> from) = 0;
  virtual void read(std::span<std::byte> to, std::byte const* from) = 0;
  /// What a sender is to share, so that tensors in this memory are mapped.
  virtual std::vector<shared_memory> shared() const { return {}; }
};
/// Plain heap memory, so that the address sanitizer guards its edges.
std::shared_ptr<memory_kind> host_memory();
/// Host memory that receivers can map; small.
std::shared_ptr<memory_kind> shared_host_memory();
/// Memory of a device, through the library's own backend.
std::shared_ptr<memory_kind> device_memory(std::shared_ptr<memory::backend> backend);

/// A tensor as it must arrive: the bytes of its contiguous image.
struct image {
  std::string name;
  dtype type = dtype::u8;
  shape dims;
  std::vector<std::byte> bytes;
};

std::vector<std::byte> random_bytes(std::uint64_t count, std::uint64_t seed);

/// A number of tensors in one allocation, each aligned for its dtype and no more, with guard bytes between
/// them.
class model {
 public:
  /// seed 0 fills every tensor with the same byte: a destination in which nothing has arrived.
  model(std::shared_ptr<memory_kind> kind, std::vector<tensor_info> specs, std::uint64_t seed);

  std::vector<tensor_info> const& specs() const { return specs_; }
  std::size_t size() const { return specs_.size(); }
  tensor_view view(std::size_t index) const;
  mutable_tensor_view target(std::size_t index);
  std::vector<tensor_view> views() const;
  /// Every tensor as a destination.
  destinations into();
  void add_to(destinations& into);

  /// Gives every tensor new bytes.
  void fill(std::uint64_t seed);
  /// Gives one tensor these bytes.
  void put(std::size_t index, std::span<std::byte const> bytes);
  /// The bytes that a tensor has now.
  std::vector<std::byte> bytes(std::size_t index) const;
  /// All tensors as they are in memory now.
  std::vector<image> current() const;
  /// Whether no tensor has been written since the last fill; guards included.
  bool untouched() const;
  bool guards_intact() const;
  /// What must arrive of views into this model's memory (strided ones too; no conversion).
  std::vector<image> images(std::span<tensor_view const> views) const;
  std::vector<image> images() const { return images(views()); }

  memory_kind& kind() const { return *kind_; }
  std::shared_ptr<memory_kind> const& memory() const { return kind_; }
  std::size_t find(std::string_view name) const;

 private:
  std::vector<std::byte> download() const;

  std::shared_ptr<memory_kind> kind_;
  std::vector<tensor_info> specs_;
  std::vector<std::uint64_t> offsets_, sizes_;
  std::unordered_map<std::string, std::size_t> index_;
  std::vector<std::byte> mirror_; ///< what was last written by fill and put
  std::shared_ptr<std::byte> block_;
};

/// Empty if `into` holds exactly these tensors' bytes (it may hold others) and nothing was written beside
/// them; else the first difference in words.
std::string difference(std::vector<image> const& wanted, model const& into);
/// The same between two lists.
std::string difference(std::vector<image> const& wanted, std::vector<image> const& got);

} // namespace ropeway::testing
