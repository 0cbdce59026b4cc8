// Lists of tensors that Python described, with what keeps their memory. Part of ropeway; Apache-2.0.
#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "dlpack.hpp"
#include "keeping.hpp"
#include "ropeway/tensor.hpp"

namespace nb = nanobind;

namespace ropeway::python {

/// What ropeway/_tensors.py says of one tensor: (dtype, shape, strides or None, address, ordinal or -1,
/// owner).
class description {
 public:
  explicit description(nb::handle parts);
  /// The name's characters must outlive the view.
  template <class Byte>
  basic_tensor_view<Byte> view(std::string_view name) const {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): that is how Python carries them
    basic_tensor_view<Byte> made(name, type_, dims_, reinterpret_cast<Byte*>(address_), where_);
    if (!strides_.empty()) made.strides(strides_);
    return made;
  }
  dtype type() const noexcept { return type_; }
  shape const& dims() const noexcept { return dims_; }
  kept owner() const { return kept(owner_.ptr()); }

 private:
  dtype type_;
  shape dims_;
  std::vector<std::int64_t> strides_;
  std::uintptr_t address_;
  device where_;
  nb::object owner_;
};

/// By the position in the enumeration.
dtype dtype_from(int number);
shape shape_from(nb::handle extents);

/// Tensors that are to be sent. Made once, then only read; what keeps them alive goes with the last user.
class sources {
 public:
  sources() = default;
  sources(sources const&) = delete; // views point into the names
  sources& operator=(sources const&) = delete;
  void add(nb::str const& name, nb::handle parts, int wire);
  /// Adds (name, tensor) pairs from `from` on, as long as a tensor is of one of `types` (torch's own, which
  /// know DLPack's table of functions) or has a buffer with a plain format; gives the place of the first that
  /// is not, which the caller looks at. Floating-point tensors are sent as `wire`, unless it is below 0.
  std::size_t take(nb::list const& pairs, std::size_t from, nb::tuple const& types, int wire);
  std::vector<tensor_view> const& all() const noexcept { return views_; }
  /// The ordinals of the devices that they lie on.
  std::vector<int> devices() const;

 private:
  bool take_exchanged(nb::handle name, nb::handle tensor, dl_exchange const& table, int wire);
  bool take_buffer(nb::handle name, nb::handle tensor, int wire);
  void keep(nb::handle name, dtype type, shape const& dims, std::span<std::int64_t const> strides,
            void const* data, device where, int wire, nb::handle owner);

  std::deque<std::string> names_; // views point into it
  std::vector<tensor_view> views_;
  std::vector<kept> owners_;
};

void bind_tensors(nb::module_& module);

} // namespace ropeway::python
