#include "lending.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "dlpack.hpp"
#include "operation.hpp"
#include "tensors.hpp"
#include "words.hpp"

namespace ropeway::python {
namespace {

/// Types that DLPack 0 has no word for go as bytes; Python views them as what they are.
std::optional<dl_type> dl_type_of(dtype type) {
  auto const make = [](int code, int bits) {
    return dl_type{static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1};
  };
  switch (type) {
  case dtype::boolean: return make(6, 8);
  case dtype::u8: return make(1, 8);
  case dtype::i8: return make(0, 8);
  case dtype::u16: return make(1, 16);
  case dtype::i16: return make(0, 16);
  case dtype::u32: return make(1, 32);
  case dtype::i32: return make(0, 32);
  case dtype::u64: return make(1, 64);
  case dtype::i64: return make(0, 64);
  case dtype::f16: return make(2, 16);
  case dtype::bf16: return make(4, 16);
  case dtype::f32: return make(2, 32);
  case dtype::f64: return make(2, 64);
  case dtype::c64: return make(5, 64);
  default: return std::nullopt;
  }
}

} // namespace

/// One array that was made of a piece.
struct exported {
  dl_managed managed{};
  std::array<std::int64_t, max_rank> extents{}, strides{};
  std::shared_ptr<lent_bucket> of;
  std::size_t piece = 0;

  /// On any thread, with the GIL or without it.
  static void drop(dl_managed* managed) {
    std::unique_ptr<exported> const own(static_cast<exported*>(managed->context));
    own->of->returned(own->piece);
  }
};

namespace {

/// Keeps an event until the library has looked at it, which it does in its next turn, or in the one after if
/// the strand was busy; whatever the device does then, the event may go.
void keep_for(int turns, asio::io_context& context, std::shared_ptr<kept> what) {
  asio::post(context, [turns, &context, what = std::move(what)]() mutable {
    if (turns > 1) keep_for(turns - 1, context, std::move(what));
  });
}

void drop_capsule(PyObject* capsule) {
  // A capsule that was consumed has another name, and its consumer calls the deleter.
  if (PyCapsule_IsValid(capsule, "dltensor"))
    exported::drop(static_cast<dl_managed*>(PyCapsule_GetPointer(capsule, "dltensor")));
}

} // namespace

lent_bucket::lent_bucket(std::shared_ptr<engine> loop, bucket what)
    : loop_(std::move(loop)), bucket_(std::move(what)), exports_(bucket_.pieces().size()) {}

lent_bucket::~lent_bucket() {
  if (loop_->forked()) new bucket(std::move(bucket_)); // the parent's
}

bool lent_bucket::released() const {
  std::scoped_lock const lock(mutex_);
  return released_;
}

nb::object lent_bucket::capsule(std::size_t piece, dtype type, shape const& dims) {
  if (piece >= exports_.size()) throw nb::index_error("the bucket has no such piece");
  bucket_piece const& of = bucket_.pieces()[piece];
  auto const sort = dl_type_of(type);
  auto const size = byte_size(type, dims);
  if (!sort || size != of.bytes)
    throw nb::value_error("a piece is seen as bytes, or as the whole tensor that it is");
  {
    std::scoped_lock const lock(mutex_);
    if (released_) return nb::none();
    ++exports_[piece];
    ++all_exports_;
  }
  auto made = std::make_unique<exported>();
  made->of = shared_from_this();
  made->piece = piece;
  std::int64_t stride = 1;
  for (std::size_t dimension = dims.rank(); dimension-- > 0;) {
    made->extents[dimension] = static_cast<std::int64_t>(dims[dimension]);
    made->strides[dimension] = stride;
    stride *= made->extents[dimension];
  }
  auto& tensor = made->managed.tensor;
  // DLPack 0 can't say "read only"; numpy takes it for that, and the documentation asks it of everyone.
  tensor.data = const_cast<std::byte*>(of.data); // NOLINT(cppcoreguidelines-pro-type-const-cast)
  tensor.device = {of.where.is_cuda() ? 2 : 1, of.where.ordinal()};
  tensor.rank = static_cast<std::int32_t>(dims.rank());
  tensor.type = *sort;
  tensor.extents = made->extents.data();
  tensor.strides = made->strides.data();
  made->managed.context = made.get();
  made->managed.deleter = &exported::drop;
  PyObject* const capsule = PyCapsule_New(&made->managed, "dltensor", &drop_capsule);
  if (!capsule) {
    returned(piece);
    throw nb::python_error();
  }
  static_cast<void>(made.release());
  return nb::steal(capsule);
}

void lent_bucket::returned(std::size_t piece) {
  bool last = false;
  {
    std::scoped_lock const lock(mutex_);
    --exports_[piece];
    last = --all_exports_ == 0 && released_;
  }
  // It came late, and nobody can say on which stream it was read: the default one, which torch's work is on
  // unless told otherwise.
  if (last && !loop_->forked()) {
    bool const cuda = !bucket_.pieces().empty() && bucket_.pieces().front().where.is_cuda();
    ready_after when;
    if (cuda) when = after(static_cast<CUstream_st*>(nullptr), bucket_.pieces().front().where);
    bucket_.release(when);
  }
}

std::vector<std::size_t> lent_bucket::release(ready_after when, kept owner) {
  std::vector<std::size_t> left;
  {
    std::scoped_lock const lock(mutex_);
    for (std::size_t piece = 0; piece < exports_.size(); ++piece)
      if (exports_[piece] != 0) left.push_back(piece);
    if (released_) return left;
    released_ = true;
  }
  if (left.empty() && !loop_->forked()) {
    bucket_.release(when);
    if (owner.get()) keep_for(3, loop_->context(), std::make_shared<kept>(std::move(owner)));
  }
  return left;
}

void bind_lending(nb::module_& module) {
  nb::class_<lent_bucket>(module, "Bucket")
      .def_prop_ro("number", &lent_bucket::number)
      .def_prop_ro("released", &lent_bucket::released)
      .def("pieces",
           [](lent_bucket const& self) {
             nb::list all; // (tensor, offset, bytes, ordinal or -1)
             for (auto const& piece : self.pieces())
               all.append(nb::make_tuple(piece.tensor, piece.tensor_offset, piece.bytes,
                                         piece.where.is_cuda() ? piece.where.ordinal() : -1));
             return all;
           })
      .def(
          "capsule",
          [](lent_bucket& self, std::size_t piece, int type, nb::handle dims) {
            return self.capsule(piece, dtype_from(type), shape_from(dims));
          },
          nb::arg("piece"), nb::arg("dtype"), nb::arg("shape"))
      .def(
          "release",
          [](lent_bucket& self, nb::handle when) { return self.release(ready_from(when), kept(when.ptr())); },
          nb::arg("when").none());
}

} // namespace ropeway::python
