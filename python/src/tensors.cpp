#include "tensors.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <optional>

#include "ropeway/cuda.hpp"
#include "words.hpp"

namespace ropeway::python {

dtype dtype_from(int number) {
  if (number < 0 || number > static_cast<int>(dtype::f4)) throw nb::value_error("no dtype has this number");
  return static_cast<dtype>(number);
}

shape shape_from(nb::handle extents) {
  std::vector<std::uint64_t> numbers;
  for (nb::handle const extent : extents) numbers.push_back(nb::cast<std::uint64_t>(extent));
  return shape(std::span<std::uint64_t const>(numbers));
}

description::description(nb::handle parts) {
  nb::tuple const all = nb::cast<nb::tuple>(parts);
  type_ = dtype_from(nb::cast<int>(all[0]));
  dims_ = shape_from(all[1]);
  if (nb::handle const strides = all[2]; !strides.is_none())
    for (nb::handle const stride : strides) strides_.push_back(nb::cast<std::int64_t>(stride));
  address_ = nb::cast<std::uintptr_t>(all[3]);
  int const ordinal = nb::cast<int>(all[4]);
  where_ = ordinal < 0 ? device::host() : device::cuda(ordinal);
  owner_ = nb::borrow(all[5]);
}

namespace {

/// Nothing for what ropeway has no word for.
std::optional<dtype> dtype_of(dl_type type) {
  if (type.lanes != 1) return std::nullopt;
  auto const one_of = [&](dtype b8, dtype b16, dtype b32, dtype b64) -> std::optional<dtype> {
    switch (type.bits) {
    case 8: return b8;
    case 16: return b16;
    case 32: return b32;
    case 64: return b64;
    default: return std::nullopt;
    }
  };
  switch (type.code) {
  case 0: return one_of(dtype::i8, dtype::i16, dtype::i32, dtype::i64);
  case 1: return one_of(dtype::u8, dtype::u16, dtype::u32, dtype::u64);
  case 2:
    if (type.bits == 8) return std::nullopt;
    return one_of(dtype::f16, dtype::f16, dtype::f32, dtype::f64);
  case 4: return type.bits == 16 ? std::optional(dtype::bf16) : std::nullopt;
  case 5: return type.bits == 64 ? std::optional(dtype::c64) : std::nullopt;
  case 6: return type.bits == 8 ? std::optional(dtype::boolean) : std::nullopt;
  case 10: return dtype::f8_e4m3;
  case 11: return dtype::f8_e4m3fnuz;
  case 12: return dtype::f8_e5m2;
  case 13: return dtype::f8_e5m2fnuz;
  case 14: return dtype::f8_e8m0;
  default: return std::nullopt;
  }
}

bool is_host(dl_device where) { return where.type == 1 || where.type == 3; }
bool is_cuda(dl_device where) { return where.type == 2 || where.type == 13; }

bool row_major(dl_tensor const& tensor) {
  if (!tensor.strides) return true;
  std::int64_t step = 1;
  for (std::int32_t dimension = tensor.rank; dimension-- > 0;) {
    if (tensor.extents[dimension] > 1 && tensor.strides[dimension] != step) return false;
    step *= std::max<std::int64_t>(tensor.extents[dimension], 1);
  }
  return true;
}

/// Of a format of Python's struct module, without a byte order or with this machine's.
std::optional<dtype> dtype_of_format(char const* format, Py_ssize_t itemsize) {
  if (!format) return dtype::u8;
  std::string_view word(format);
  if (!word.empty() && (word.front() == '@' || word.front() == '=')) word.remove_prefix(1);
  if (word == "Zf") return dtype::c64;
  if (word.size() != 1) return std::nullopt;
  auto const bits = static_cast<std::uint8_t>(itemsize * 8);
  switch (word.front()) {
  case '?': return dtype::boolean;
  case 'c':
  case 'B':
  case 'H':
  case 'I':
  case 'L':
  case 'Q': return dtype_of({1, bits, 1});
  case 'b':
  case 'h':
  case 'i':
  case 'l':
  case 'q': return dtype_of({0, bits, 1});
  case 'e':
  case 'f':
  case 'd': return dtype_of({2, bits, 1});
  default: return std::nullopt;
  }
}

void return_managed(PyObject* capsule) {
  auto* const managed = static_cast<dl_managed*>(PyCapsule_GetPointer(capsule, "ropeway"));
  if (managed->deleter) managed->deleter(managed);
}

/// Takes over a capsule; gives (dtype, shape, strides or None, address, ordinal or -1, owner).
nb::object from_dlpack(nb::handle capsule) {
  auto* const managed = static_cast<dl_managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw nb::python_error();
  dl_tensor const& tensor = managed->tensor;
  auto const type = dtype_of(tensor.type);
  if (!type) throw nb::type_error("ropeway carries no elements of this dtype");
  bool const host = tensor.device.type == 1 || tensor.device.type == 3,
             cuda = tensor.device.type == 2 || tensor.device.type == 13;
  if (!host && !cuda) throw nb::type_error("ropeway reads and writes host and CUDA memory only");
  nb::list extents, strides;
  bool const plain = row_major(tensor);
  for (std::int32_t dimension = 0; dimension < tensor.rank; ++dimension) {
    extents.append(tensor.extents[dimension]);
    if (!plain) strides.append(tensor.strides[dimension]);
  }
  PyObject* const owner = PyCapsule_New(managed, "ropeway", &return_managed);
  if (!owner) throw nb::python_error();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor"); // ours now, the interface says
  nb::object const keeps = nb::steal(owner);
  auto const address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
  return nb::make_tuple(static_cast<int>(*type), nb::tuple(extents),
                        plain ? nb::object(nb::none()) : nb::object(nb::tuple(strides)), address,
                        host ? -1 : tensor.device.ordinal, keeps);
}

std::uintptr_t buffer_address(nb::handle view) {
  Py_buffer* const buffer = PyMemoryView_Check(view.ptr()) ? PyMemoryView_GET_BUFFER(view.ptr()) : nullptr;
  if (!buffer) throw nb::type_error("a memoryview is needed");
  return reinterpret_cast<std::uintptr_t>(buffer->buf);
}

std::byte const* start_of(dl_tensor const& seen) {
  return static_cast<std::byte const*>(seen.data) + seen.byte_offset;
}

device device_of(dl_tensor const& seen) {
  return is_host(seen.device) ? device::host() : device::cuda(seen.device.ordinal);
}

/// The parts of a (name, tensor) pair, if it is one.
bool named(PyObject* pair, nb::handle& name, nb::handle& tensor) {
  if (!PyTuple_CheckExact(pair) || PyTuple_GET_SIZE(pair) != 2 || !PyUnicode_Check(PyTuple_GET_ITEM(pair, 0)))
    return false;
  name = PyTuple_GET_ITEM(pair, 0);
  tensor = PyTuple_GET_ITEM(pair, 1);
  return true;
}

bool same(tensor_view const& view, dl_tensor const& seen) {
  shape const& dims = view.dims();
  auto const rank = static_cast<std::size_t>(seen.rank);
  if (view.data() != start_of(seen) || view.type() != dtype_of(seen.type) ||
      view.where() != device_of(seen) || dims.rank() != rank)
    return false;
  for (std::size_t dimension = 0; dimension < rank; ++dimension)
    if (dims[dimension] != static_cast<std::uint64_t>(seen.extents[dimension])) return false;
  if (row_major(seen)) return !view.is_strided();
  auto const strides = view.strides();
  return view.is_strided() && std::equal(strides.begin(), strides.begin() + seen.rank, seen.strides);
}

} // namespace

exchange::exchange(nb::tuple const& types) : types_(types) {
  if (nb::len(types) == 0 || !nb::hasattr(types[0], "__dlpack_c_exchange_api__")) return;
  nb::object const shown = types[0].attr("__dlpack_c_exchange_api__");
  if (!PyCapsule_IsValid(shown.ptr(), "dlpack_exchange_api")) return;
  table_ = static_cast<dl_exchange const*>(PyCapsule_GetPointer(shown.ptr(), "dlpack_exchange_api"));
  if (table_->version.major != 1) table_ = nullptr;
  is_neg_ = types[0].attr("is_neg");
  is_conj_ = types[0].attr("is_conj");
  storage_ = types[0].attr("untyped_storage");
}

bool exchange::knows(nb::handle tensor) const {
  for (nb::handle const type : types_)
    if (tensor.type().is(type)) return true;
  return false;
}

bool exchange::look(nb::handle tensor, dl_tensor& seen) const {
  if (!table_) return false;
  if (table_->look(tensor.ptr(), &seen) != 0) {
    PyErr_Clear(); // whoever looks closer says why
    return false;
  }
  return dtype_of(seen.type) && (is_host(seen.device) || is_cuda(seen.device)) &&
         seen.rank <= static_cast<int>(max_rank);
}

bool exchange::literal(nb::handle tensor, dtype type) const {
  return !says(is_neg_, tensor) && !(type == dtype::c64 && says(is_conj_, tensor));
}

bool exchange::says(nb::object const& method, nb::handle tensor) const {
  PyObject* const self = tensor.ptr();
  nb::object const answer = nb::steal(PyObject_Vectorcall(method.ptr(), &self, 1, nullptr));
  if (!answer.is_valid()) throw nb::python_error();
  return answer.ptr() == Py_True;
}

nb::object exchange::storage(nb::handle tensor) const {
  PyObject* const self = tensor.ptr();
  nb::object found = nb::steal(PyObject_Vectorcall(storage_.ptr(), &self, 1, nullptr));
  if (!found.is_valid()) throw nb::python_error();
  return found;
}

std::size_t pair_walk::size() const {
  return static_cast<std::size_t>(PyDict_CheckExact(pairs_.ptr()) ? PyDict_GET_SIZE(pairs_.ptr())
                                                                  : PyList_GET_SIZE(pairs_.ptr()));
}

bool pair_walk::next(nb::handle& name, nb::handle& tensor) {
  if (!PyDict_CheckExact(pairs_.ptr()))
    return at_ < PyList_GET_SIZE(pairs_.ptr()) && named(PyList_GET_ITEM(pairs_.ptr(), at_++), name, tensor);
  PyObject *key = nullptr, *value = nullptr;
  if (!PyDict_Next(pairs_.ptr(), &at_, &key, &value) || !PyUnicode_Check(key)) return false;
  name = key;
  tensor = value;
  return true;
}

void tensor_table::object::fetch() const noexcept {
  // A line each of the reference and the tensor, and what torch has around the extents.
  constexpr std::ptrdiff_t line = 64;
  auto const* const here = static_cast<char const*>(inside);
  __builtin_prefetch(weak.get());
  __builtin_prefetch(at);
  for (std::ptrdiff_t offset = -2 * line; offset <= line; offset += line) __builtin_prefetch(here + offset);
}

bool tensor_table::same(nb::handle pairs, exchange const& torch) const {
  pair_walk walk(pairs);
  if (walk.size() != views.size() || objects.size() != views.size()) return false;
  // Since the last version all of them have left the caches, and one after the other they would be waited
  // for.
  constexpr std::size_t ahead = 8;
  for (std::size_t at = 0; at < std::min(ahead, objects.size()); ++at) objects[at].fetch();
  auto known = names.begin();
  for (std::size_t at = 0; at < views.size(); ++at, ++known) {
    nb::handle name, tensor;
    dl_tensor seen{};
    if (at + ahead < objects.size()) objects[at + ahead].fetch();
    if (!walk.next(name, tensor) || !torch.knows(tensor)) return false;
    // Where torch lets the GIL go, another thread may change what the caller gave.
    nb::object const name_kept = nb::borrow(name), tensor_kept = nb::borrow(tensor);
    auto const& object = objects[at];
    if (object.name.get() != name.ptr()) {
      Py_ssize_t size = 0;
      char const* const word = PyUnicode_AsUTF8AndSize(name.ptr(), &size);
      if (!word) throw nb::python_error();
      if (*known != std::string_view(word, static_cast<std::size_t>(size))) return false;
    }
    // The same object is as literal as it was, which takes as long to ask as all of this: `own` does.
    bool const again = PyWeakref_GET_OBJECT(object.weak.get()) == tensor.ptr();
    if (!torch.look(tensor, seen) || !python::same(views[at], seen) ||
        !(again || torch.literal(tensor, views[at].type())))
      return false;
  }
  return true;
}

void sources::keep(nb::handle name, dtype type, shape const& dims, std::span<std::int64_t const> strides,
                   void const* data, device where, int wire, nb::handle owner) {
  auto& names = table_->names;
  auto& views = table_->views;
  names.push_back(text_of(name));
  owners_.emplace_back(owner.ptr());
  views.emplace_back(names.back(), type, dims, data, where);
  if (!strides.empty()) views.back().strides(strides);
  bool const floating = type == dtype::f16 || type == dtype::bf16 || type == dtype::f32 || type == dtype::f64;
  if (wire >= 0 && floating) views.back().sent_as(dtype_from(wire));
}

void sources::add(nb::str const& name, nb::handle parts, int wire) {
  description const tensor(parts);
  auto& names = table_->names;
  auto& views = table_->views;
  names.push_back(text_of(name));
  owners_.push_back(tensor.owner());
  views.push_back(tensor.view<std::byte const>(names.back()));
  if (wire >= 0) views.back().sent_as(dtype_from(wire));
}

bool sources::take_exchanged(nb::handle name, nb::handle tensor, exchange const& torch, int wire) {
  dl_tensor seen{};
  if (!torch.look(tensor, seen) || !torch.literal(tensor, *dtype_of(seen.type))) return false;
  std::array<std::uint64_t, max_rank> extents{};
  auto const rank = static_cast<std::size_t>(seen.rank);
  for (std::size_t dimension = 0; dimension < rank; ++dimension)
    extents[dimension] = static_cast<std::uint64_t>(seen.extents[dimension]);
  std::span<std::int64_t const> strides;
  if (!row_major(seen)) strides = {seen.strides, rank};
  keep(name, *dtype_of(seen.type), shape(std::span<std::uint64_t const>(extents.data(), rank)), strides,
       start_of(seen), device_of(seen), wire, torch.storage(tensor));
  nb::object const weak = nb::steal(PyWeakref_NewRef(tensor.ptr(), nullptr));
  if (!weak.is_valid()) throw nb::python_error();
  table_->objects.push_back({kept(name.ptr()), kept(weak.ptr()), tensor.ptr(), seen.extents});
  return true;
}

void sources::own(nb::handle pairs, exchange const& torch) {
  pair_walk walk(pairs);
  owners_.reserve(walk.size());
  auto view = table_->views.begin();
  auto const changed = [] { return nb::value_error("the tensors were changed while they were looked at"); };
  for (nb::handle name, tensor; walk.next(name, tensor);) {
    if (view == table_->views.end()) throw changed();
    nb::object const tensor_kept = nb::borrow(tensor); // as in `same`
    owners_.emplace_back(torch.storage(tensor).ptr());
    if (!torch.literal(tensor, view->type()))
      throw nb::type_error(
          ("tensor '" + std::string(view->name()) + "' was negated or conjugated in place").c_str());
    ++view;
  }
  if (view != table_->views.end()) throw changed();
}

bool sources::take_buffer(nb::handle name, nb::handle tensor, int wire) {
  nb::object const owner = nb::steal(PyMemoryView_FromObject(tensor.ptr()));
  if (!owner.is_valid()) {
    PyErr_Clear();
    return false;
  }
  Py_buffer const& seen = *PyMemoryView_GET_BUFFER(owner.ptr());
  auto const type = dtype_of_format(seen.format, seen.itemsize);
  if (!type || seen.ndim > static_cast<int>(max_rank) || seen.suboffsets) return false;
  std::array<std::uint64_t, max_rank> extents{};
  std::array<std::int64_t, max_rank> strides{};
  auto const rank = static_cast<std::size_t>(seen.ndim);
  bool plain = true;
  std::int64_t step = 1;
  for (std::size_t dimension = rank; dimension-- > 0;) {
    extents[dimension] = static_cast<std::uint64_t>(seen.shape[dimension]);
    if (seen.strides[dimension] % seen.itemsize != 0) return false;
    strides[dimension] = seen.strides[dimension] / seen.itemsize;
    if (extents[dimension] > 1 && strides[dimension] != step) plain = false;
    step *= std::max<std::int64_t>(seen.shape[dimension], 1);
  }
  keep(name, *type, shape(std::span<std::uint64_t const>(extents.data(), rank)),
       plain ? std::span<std::int64_t const>() : std::span<std::int64_t const>(strides.data(), rank),
       seen.buf, device::host(), wire, owner);
  return true;
}

std::size_t sources::take(nb::list const& pairs, std::size_t from, nb::tuple const& types, int wire) {
  exchange const torch(types);
  std::size_t const size = nb::len(pairs);
  table_->views.reserve(size);
  owners_.reserve(size);
  for (; from < size; ++from) {
    nb::handle name, tensor;
    nb::object const pair = nb::borrow(PyList_GetItem(pairs.ptr(), static_cast<Py_ssize_t>(from)));
    if (!pair.is_valid()) throw nb::python_error(); // another thread has made it shorter
    if (!named(pair.ptr(), name, tensor)) return from;
    if (torch.knows(tensor) ? !take_exchanged(name, tensor, torch, wire) : !take_buffer(name, tensor, wire))
      return from;
  }
  return from;
}

std::vector<int> sources::devices() const {
  std::vector<int> found;
  for (auto const& view : table_->views) {
    int const ordinal = view.where().is_cuda() ? view.where().ordinal() : -1;
    if (std::find(found.begin(), found.end(), ordinal) == found.end()) found.push_back(ordinal);
  }
  return found;
}

void bind_tensors(nb::module_& module) {
  nb::list dtypes; // (name, bits), by number
  for (int number = 0; number <= static_cast<int>(dtype::f4); ++number)
    dtypes.append(nb::make_tuple(text(name(dtype_from(number))), bits(dtype_from(number))));
  module.attr("dtypes") = nb::tuple(dtypes);

  // Whether nothing is on a stream any more; false where that can't be told.
  module.def(
      "is_idle",
      [](std::uintptr_t stream, int ordinal) {
        return is_past(after(reinterpret_cast<CUstream_st*>(stream), device::cuda(ordinal)));
      },
      nb::arg("stream"), nb::arg("ordinal"));
  module.def("from_dlpack", &from_dlpack, nb::arg("capsule"));
  module.def("buffer_address", &buffer_address, nb::arg("view"));
  nb::class_<sources>(module, "Sources")
      .def(nb::new_([] { return std::make_shared<sources>(); }))
      .def("add", &sources::add, nb::arg("name"), nb::arg("tensor"), nb::arg("wire"))
      .def("take", &sources::take, nb::arg("pairs"), nb::arg("start"), nb::arg("types"), nb::arg("wire"))
      .def("devices", &sources::devices)
      .def("__len__", [](sources const& self) { return self.all().size(); });
}

} // namespace ropeway::python
