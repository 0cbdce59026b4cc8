#include "tensors.hpp"

#include "dlpack.hpp"
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

void sources::add(nb::str name, nb::handle parts, int wire) {
  description const tensor(parts);
  names_.push_back(text_of(name));
  views_.push_back(tensor.view<std::byte const>(names_.back()));
  if (wire >= 0) views_.back().sent_as(dtype_from(wire));
  owners_.push_back(tensor.owner());
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
  bool row_major = true;
  std::int64_t step = 1;
  for (std::int32_t dimension = tensor.rank; dimension-- > 0;) {
    if (tensor.strides && tensor.extents[dimension] > 1 && tensor.strides[dimension] != step)
      row_major = false;
    step *= std::max<std::int64_t>(tensor.extents[dimension], 1);
  }
  for (std::int32_t dimension = 0; dimension < tensor.rank; ++dimension) {
    extents.append(tensor.extents[dimension]);
    if (!row_major) strides.append(tensor.strides[dimension]);
  }
  PyObject* const owner = PyCapsule_New(managed, "ropeway", &return_managed);
  if (!owner) throw nb::python_error();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor"); // ours now, the interface says
  nb::object const keeps = nb::steal(owner);
  auto const address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
  return nb::make_tuple(static_cast<int>(*type), nb::tuple(extents),
                        row_major ? nb::object(nb::none()) : nb::object(nb::tuple(strides)), address,
                        host ? -1 : tensor.device.ordinal, keeps);
}

std::uintptr_t buffer_address(nb::handle view) {
  Py_buffer* const buffer = PyMemoryView_Check(view.ptr()) ? PyMemoryView_GET_BUFFER(view.ptr()) : nullptr;
  if (!buffer) throw nb::type_error("a memoryview is needed");
  return reinterpret_cast<std::uintptr_t>(buffer->buf);
}

} // namespace

void bind_tensors(nb::module_& module) {
  nb::list dtypes; // (name, bits), by number
  for (int number = 0; number <= static_cast<int>(dtype::f4); ++number)
    dtypes.append(nb::make_tuple(text(name(dtype_from(number))), bits(dtype_from(number))));
  module.attr("dtypes") = nb::tuple(dtypes);

  module.def("from_dlpack", &from_dlpack, nb::arg("capsule"));
  module.def("buffer_address", &buffer_address, nb::arg("view"));
  nb::class_<sources>(module, "Sources")
      .def(nb::init<>())
      .def("add", &sources::add, nb::arg("name"), nb::arg("tensor"), nb::arg("wire"))
      .def("__len__", [](sources const& self) { return self.all().size(); });
}

} // namespace ropeway::python
