// Lists of tensors that Python described, with what keeps their memory. Part of ropeway; Apache-2.0.
#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "dlpack.hpp"
#include "keeping.hpp"
#include "ropeway/tensor.hpp"
#include "sharing.hpp"

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

/// torch's own tensors, which are looked at without a call into Python: its types, and what its table of
/// functions is. Made anew for each call, for the types' own methods may be looked up only once then.
class exchange {
 public:
  /// `types` are torch.Tensor and torch.nn.Parameter, or nothing where there is no torch.
  explicit exchange(nb::tuple const& types);
  /// Whether it is of torch's own types: what a subclass shows as its memory may be a part of what it is.
  bool knows(nb::handle tensor) const;
  /// What its memory is, or false for what has to be looked at more closely.
  bool look(nb::handle tensor, dl_tensor& seen) const;
  /// Whether its values are what its memory holds, and not conjugated or negated when they are read.
  bool literal(nb::handle tensor, dtype type) const;
  /// The storage, and not the tensor, which may be given another one meanwhile (`parameter.data = ...`).
  nb::object storage(nb::handle tensor) const;

 private:
  bool says(nb::object const& method, nb::handle tensor) const;
  nb::tuple types_;
  dl_exchange const* table_ = nullptr;
  nb::object is_neg_, is_conj_, storage_;
};

/// Goes through (name, tensor) pairs: those of a dict itself, or of a list.
class pair_walk {
 public:
  explicit pair_walk(nb::handle pairs) : pairs_(pairs) {}
  std::size_t size() const;
  /// False at the end, and at what is no pair.
  bool next(nb::handle& name, nb::handle& tensor);

 private:
  nb::handle pairs_;
  Py_ssize_t at_ = 0;
};

/// What was seen of tensors. Keeps none of their memory.
struct tensor_table {
  tensor_table() = default;
  tensor_table(tensor_table const&) = delete; // views point into the names
  tensor_table& operator=(tensor_table const&) = delete;
  std::deque<std::string> names;
  std::vector<tensor_view> views;
  /// One of torch's own.
  struct object {
    kept name; ///< the string itself: the same one says the same, and need not be read
    kept weak; ///< a reference to the tensor
    /// Where the tensor and its extents were, to have them fetched ahead. Not to be followed: it may be gone.
    void const *at = nullptr, *inside = nullptr;
    void fetch() const noexcept;
  };
  std::vector<object> objects; ///< if all are torch's own
  /// Whether `pairs` of torch's own tensors are these: names, dtypes, shapes, strides and addresses.
  bool same(nb::handle pairs, exchange const& torch) const;
};

/// Tensors that are to be sent. Made once, then only read; what keeps them alive goes with the last user.
class sources : public shareable<sources> {
 public:
  sources() : table_(std::make_shared<tensor_table>()) {}
  /// Of tensors that were seen before; their owners are still to be added.
  explicit sources(std::shared_ptr<tensor_table> table) : table_(std::move(table)) {}
  sources(sources const&) = delete;
  sources& operator=(sources const&) = delete;
  void add(nb::str const& name, nb::handle parts, int wire);
  /// Adds (name, tensor) pairs from `from` on, as long as a tensor is of one of `types` (torch's own, which
  /// know DLPack's table of functions) or has a buffer with a plain format; gives the place of the first that
  /// is not, which the caller looks at. Floating-point tensors are sent as `wire`, unless it is below 0.
  std::size_t take(nb::list const& pairs, std::size_t from, nb::tuple const& types, int wire);
  std::vector<tensor_view> const& all() const noexcept { return table_->views; }
  std::shared_ptr<tensor_table> const& table() const noexcept { return table_; }
  /// Whether `take` took all of them, and found torch's own tensors only.
  bool all_exchanged() const noexcept { return table_->objects.size() == table_->views.size(); }
  /// Keeps the memory of `pairs`, which were found to be the same; throws if one of them is not `literal` any
  /// more.
  void own(nb::handle pairs, exchange const& torch);
  /// The ordinals of the devices that they lie on.
  std::vector<int> devices() const;

 private:
  bool take_exchanged(nb::handle name, nb::handle tensor, exchange const& torch, int wire);
  bool take_buffer(nb::handle name, nb::handle tensor, int wire);
  void keep(nb::handle name, dtype type, shape const& dims, std::span<std::int64_t const> strides,
            void const* data, device where, int wire, nb::handle owner);

  std::shared_ptr<tensor_table> table_;
  std::vector<kept> owners_;
};

void bind_tensors(nb::module_& module);

} // namespace ropeway::python
