#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <deque>
#include <optional>
#include <tuple>

#include "lending.hpp"
#include "operation.hpp"
#include "ropeway/receiver.hpp"
#include "tensors.hpp"
#include "words.hpp"

namespace ropeway::python {
namespace {

nb::object number_or_none(std::optional<std::uint64_t> number) {
  return number ? nb::object(nb::int_(*number)) : nb::object(nb::none());
}

/// Destinations, and what keeps their memory.
class destinations_handle {
 public:
  destinations_handle() = default;
  destinations_handle(destinations_handle const&) = delete;
  destinations_handle& operator=(destinations_handle const&) = delete;
  void add(nb::str const& name, nb::handle parts) { own().add(view(name, parts)); }
  void add_part(nb::str const& name, nb::handle parts, nb::handle start) {
    std::vector<std::uint64_t> numbers;
    for (nb::handle const one : start) numbers.push_back(nb::cast<std::uint64_t>(one));
    own().add_part(std::span<std::uint64_t const>(numbers), view(name, parts));
  }
  void add_shard(nb::str const& name, nb::handle parts, std::size_t dimension, std::uint32_t rank,
                 std::uint32_t ranks) {
    own().add_shard(dimension, rank, ranks, view(name, parts));
  }
  /// While somebody has this, they can't be given away: an update will be loaded into what they are then.
  std::shared_ptr<int> awaited() const { return awaited_; }
  /// Throws if it was given to shadow destinations.
  destinations& own() {
    if (taken_) throw nb::value_error("these destinations belong to a ShadowDestinations now");
    return destinations_;
  }
  destinations take() {
    if (awaited_.use_count() > 1) throw nb::value_error("a load_next waits for these destinations");
    destinations all = std::move(own());
    taken_ = true;
    return all;
  }

 private:
  mutable_tensor_view view(nb::str const& name, nb::handle parts) {
    description const tensor(parts);
    names_.push_back(text_of(name));
    owners_.push_back(tensor.owner());
    return tensor.view<std::byte>(names_.back());
  }
  std::deque<std::string> names_;
  std::vector<kept> owners_;
  destinations destinations_;
  std::shared_ptr<int> awaited_ = std::make_shared<int>();
  bool taken_ = false;
};

/// Both sets; the Python objects that they were are kept for what keeps their memory.
class shadow_handle {
 public:
  shadow_handle(nb::object const& first, nb::object const& second, bool swap)
      : first_(first.ptr()), second_(second.ptr()), both_(make(first, second, swap)) {}
  shadow_destinations& get() noexcept { return both_; }

 private:
  static shadow_destinations make(nb::object const& first, nb::object const& second, bool swap) {
    auto& one = nb::cast<destinations_handle&>(first);
    auto& other = nb::cast<destinations_handle&>(second);
    one.own();
    other.own();
    if (first.is(second))
      throw nb::value_error("two sets of destinations are needed, in memory of their own");
    return {one.take(), other.take(), swap ? shadow_form::swap : shadow_form::copy_at_commit};
  }
  kept first_, second_;
  shadow_destinations both_;
};

/// A lease, and what keeps the memory that it is for.
class lease_handle {
 public:
  lease_handle(weights_lease lease, kept of) : of_(std::move(of)), lease_(std::move(lease)) {}
  weights_lease const& get() const noexcept { return lease_; }
  void end() { lease_.end(); }

 private:
  kept of_;
  weights_lease lease_;
};

class update_handle {
 public:
  update_handle(std::shared_ptr<engine> loop, update what)
      : loop_(std::move(loop)), update_(std::move(what)) {}
  update_handle(update_handle const&) = delete;
  update_handle& operator=(update_handle const&) = delete;
  ~update_handle() {
    if (loop_->forked()) new update(std::move(update_)); // the parent's
  }

  update& get() {
    if (loop_->forked())
      throw transfer_error(errc::not_open,
                           "this update belongs to the process that this one was forked from");
    return update_;
  }
  nb::object tensors() const {
    nb::list all; // (name, dtype, shape)
    for (auto const& tensor : update_.tensors()) {
      nb::list extents;
      for (auto const extent : tensor.dims.extents()) extents.append(extent);
      all.append(nb::make_tuple(text(tensor.name), static_cast<int>(tensor.type), nb::tuple(extents)));
    }
    return all;
  }
  // Each keeps the Python object of the update: one that nobody has any more gives its update up.
  operation load_into(nb::object const& self, nb::object const& into, nb::handle when) {
    auto owner = std::make_tuple(kept(self.ptr()), kept(into.ptr()), kept(when.ptr()));
    auto make = [](load_report const& report) { return to_python(report); };
    ready_after const ready = ready_from(when);
    if (nb::isinstance<shadow_handle>(into))
      return begin<load_report>(loop_, get().load_into(nb::cast<shadow_handle&>(into).get(), ready),
                                std::move(owner), make);
    return begin<load_report>(loop_, get().load_into(nb::cast<destinations_handle&>(into).own(), ready),
                              std::move(owner), make);
  }
  operation next_bucket(nb::object const& self) {
    auto make = [loop = loop_](std::optional<bucket> next) {
      if (!next) return nb::object(nb::none());
      return nb::cast(std::make_shared<lent_bucket>(loop, std::move(*next)));
    };
    return begin<std::optional<bucket>>(loop_, get().next_bucket(), kept(self.ptr()), make);
  }
  operation commit(nb::object const& self) {
    return begin<load_report>(loop_, get().commit(), kept(self.ptr()),
                              [](load_report const& report) { return to_python(report); });
  }
  /// As C++'s destructor does: refuses it, or gives it up. Later calls find nothing.
  void drop() { get() = update(); }

 private:
  std::shared_ptr<engine> loop_;
  update update_; // goes before the loop
};

/// The next update, loaded on the loop's thread as soon as it is there; nothing after the sender's goodbye.
template <class Into>
awaitable<std::optional<load_report>> load_next(awaitable<std::optional<update>> waiting, Into& into,
                                                ready_after when) {
  std::optional<update> next = co_await std::move(waiting);
  if (!next) co_return std::nullopt;
  load_report report = co_await next->load_into(into, when);
  co_return report;
}

class receiver_handle {
 public:
  explicit receiver_handle(nb::dict const& knobs) {
    receiver_options const options = receiver_options_from(knobs);
    without_gil const released;
    auto loop = make_engine();
    receiver_ = std::make_unique<receiver>(loop->executor(), options);
    loop_ = std::move(loop);
  }
  receiver_handle(receiver_handle const&) = delete;
  receiver_handle& operator=(receiver_handle const&) = delete;
  ~receiver_handle() { destroy(); }

  void destroy() {
    if (!loop_) return;
    // Another thread that gets the GIL meanwhile finds it closed.
    auto loop = std::move(loop_);
    auto own = std::move(receiver_);
    without_gil const released;
    if (loop->forked())
      static_cast<void>(own.release()); // the parent's
    else
      own.reset();
    loop.reset();
  }
  operation connect(std::string path) {
    return begin<done>(loop_, with_result(open().connect(std::move(path))), 0, no_result);
  }
  operation next_update() {
    auto make = [loop = loop_](std::optional<update> next) {
      if (!next) return nb::object(nb::none());
      return nb::cast(std::make_shared<update_handle>(loop, std::move(*next)));
    };
    return begin<std::optional<update>>(loop_, open().next_update(), 0, make);
  }
  operation load_next(nb::object const& into, nb::handle when) {
    std::shared_ptr<int> awaited;
    if (!nb::isinstance<shadow_handle>(into)) awaited = nb::cast<destinations_handle&>(into).awaited();
    auto owner = std::make_tuple(kept(into.ptr()), kept(when.ptr()), std::move(awaited));
    auto make = [](std::optional<load_report> const& report) {
      return report ? to_python(*report) : nb::object(nb::none());
    };
    ready_after const ready = ready_from(when);
    auto waiting = open().next_update();
    if (nb::isinstance<shadow_handle>(into))
      return begin<std::optional<load_report>>(
          loop_, python::load_next(std::move(waiting), nb::cast<shadow_handle&>(into).get(), ready),
          std::move(owner), make);
    return begin<std::optional<load_report>>(
        loop_, python::load_next(std::move(waiting), nb::cast<destinations_handle&>(into).own(), ready),
        std::move(owner), make);
  }
  nb::object version() { return number_or_none(open().version()); }
  nb::object status() { return to_python(open().status()); }
  operation close() { return begin<done>(loop_, with_result(open().close()), 0, no_result); }
  bool is_open() const noexcept { return loop_ != nullptr && !loop_->forked(); }

 private:
  receiver& open() {
    if (!loop_) throw transfer_error(errc::not_open, "this receiver was closed");
    if (loop_->forked())
      throw transfer_error(errc::not_open,
                           "this receiver belongs to the process that this one was forked from; make "
                           "a receiver of your own");
    return *receiver_;
  }
  std::shared_ptr<engine> loop_;
  std::unique_ptr<receiver> receiver_; // goes before the loop
};

} // namespace

void bind_receiving(nb::module_& module) {
  nb::class_<destinations_handle>(module, "Destinations")
      .def(nb::init<>())
      .def("add", &destinations_handle::add, nb::arg("name"), nb::arg("tensor"))
      .def("add_part", &destinations_handle::add_part, nb::arg("name"), nb::arg("tensor"), nb::arg("start"))
      .def("add_shard", &destinations_handle::add_shard, nb::arg("name"), nb::arg("tensor"),
           nb::arg("dimension"), nb::arg("rank"), nb::arg("ranks"))
      .def(
          "allow_unsent", [](destinations_handle& self, bool on) { self.own().allow_unsent(on); },
          nb::arg("on"))
      .def(
          "allow_unplaced", [](destinations_handle& self, bool on) { self.own().allow_unplaced(on); },
          nb::arg("on"))
      .def(
          "allow_tied", [](destinations_handle& self, bool on) { self.own().allow_tied(on); }, nb::arg("on"))
      .def("__len__", [](destinations_handle& self) { return self.own().size(); })
      .def("torn_tensors",
           [](destinations_handle& self) {
             nb::list all;
             for (auto const& name : self.own().torn_tensors()) all.append(text(name));
             return all;
           })
      .def_prop_ro("torn", [](destinations_handle& self) { return self.own().torn(); })
      .def_prop_ro("version", [](destinations_handle& self) { return number_or_none(self.own().version()); })
      .def("status", [](destinations_handle& self) { return to_python(self.own().status()); });
  nb::class_<lease_handle>(module, "Lease")
      .def_prop_ro("held", [](lease_handle const& self) { return bool(self.get()); })
      .def_prop_ro("set", [](lease_handle const& self) { return self.get().set(); })
      .def_prop_ro("version", [](lease_handle const& self) { return self.get().version(); })
      .def("end", &lease_handle::end);
  nb::class_<shadow_handle>(module, "ShadowDestinations")
      .def(nb::init<nb::object const&, nb::object const&, bool>(), nb::arg("first"), nb::arg("second"),
           nb::arg("swap"))
      .def("lease",
           [](nb::object const& self) {
             return std::make_shared<lease_handle>(nb::cast<shadow_handle&>(self).get().lease(),
                                                   kept(self.ptr()));
           })
      .def_prop_ro("version", [](shadow_handle& self) { return number_or_none(self.get().version()); })
      .def("status", [](shadow_handle& self) { return to_python(self.get().status()); });
  nb::class_<update_handle>(module, "Update")
      .def_prop_ro("version", [](update_handle& self) { return self.get().version(); })
      .def_prop_ro("total_bytes", [](update_handle& self) { return self.get().total_bytes(); })
      .def_prop_ro("buckets", [](update_handle& self) { return self.get().buckets(); })
      .def("tensors", &update_handle::tensors)
      .def_prop_ro("layout",
                   [](update_handle& self) {
                     auto const hash = self.get().layout();
                     return nb::bytes(hash.data(), hash.size());
                   })
      .def(
          "load_into",
          [](nb::object const& self, nb::object const& into, nb::handle when) {
            return nb::cast<update_handle&>(self).load_into(self, into, when);
          },
          nb::arg("into"), nb::arg("when").none())
      .def("next_bucket",
           [](nb::object const& self) { return nb::cast<update_handle&>(self).next_bucket(self); })
      .def("commit", [](nb::object const& self) { return nb::cast<update_handle&>(self).commit(self); })
      .def(
          "refuse", [](update_handle& self, std::string why) { self.get().refuse(std::move(why)); },
          nb::arg("why"))
      .def(
          "not_now",
          [](update_handle& self, double retry, std::string why) {
            self.get().not_now(
                milliseconds(static_cast<std::int64_t>(std::min(std::max(retry, 0.0), 1e9) * 1000)),
                std::move(why));
          },
          nb::arg("retry"), nb::arg("why"))
      .def("drop", &update_handle::drop);
  nb::class_<receiver_handle>(module, "Receiver")
      .def(nb::init<nb::dict const&>(), nb::arg("knobs"))
      .def("connect", &receiver_handle::connect, nb::arg("path"))
      .def("next_update", &receiver_handle::next_update)
      .def("load_next", &receiver_handle::load_next, nb::arg("into"), nb::arg("when").none())
      .def_prop_ro("version", &receiver_handle::version)
      .def("status", &receiver_handle::status)
      .def("close", &receiver_handle::close)
      .def("destroy", &receiver_handle::destroy)
      .def_prop_ro("is_open", &receiver_handle::is_open);
}

} // namespace ropeway::python
