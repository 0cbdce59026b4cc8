// Lists of tensors that Python described, with what keeps their memory. Part of ropeway; Apache-2.0.
#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

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
  void add(nb::str name, nb::handle parts, int wire);
  std::vector<tensor_view> const& all() const noexcept { return views_; }

 private:
  std::deque<std::string> names_; // views point into it
  std::vector<tensor_view> views_;
  std::vector<kept> owners_;
};

void bind_tensors(nb::module_& module);

} // namespace ropeway::python
