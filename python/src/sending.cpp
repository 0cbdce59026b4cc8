#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <asio/steady_timer.hpp>
#include <mutex>
#include <optional>

#include "operation.hpp"
#include "ropeway/sender.hpp"
#include "sharing.hpp"
#include "tensors.hpp"
#include "words.hpp"

namespace ropeway::python {
namespace {

/// Tensors that a sender has looked at, and what keeps their memory.
struct prepared : shareable<prepared> {
  prepared_tensors tensors;
  std::shared_ptr<sources> of;
};

/// What a sender saw of torch's own tensors that it sent, to recognise them: keeps none of their memory.
struct seen_tensors {
  prepared_tensors tensors;
  std::shared_ptr<tensor_table> table;
};

/// Host memory that receivers can map, as a buffer.
class shared_block {
 public:
  explicit shared_block(std::uint64_t bytes) : memory(shared_memory::make(bytes)) {}
  shared_memory memory;
};

/// The place where a send meets Python's iterator of tensors: the send asks on the library's thread, Python
/// answers on its own.
class bridge final : public tensor_source, public shareable<bridge> {
 public:
  bridge(std::shared_ptr<engine> const& loop, std::vector<tensor_info> stated, device where)
      : loop_(loop), stated_(std::move(stated)), where_(where), given_(loop->context()) {}

  // For the sender, on its strand.
  device where() const override { return where_; }
  std::vector<tensor_info> manifest() override { return stated_; }
  awaitable<source_tensor> next(std::uint32_t index) override;
  /// There will be no more questions.
  void finish();

  // For Python, with the GIL.
  /// Ends with the next index that the send asks for, or with nothing when the send has ended.
  std::shared_ptr<task_of<std::optional<std::uint32_t>>> wanted(std::weak_ptr<task> const& send);
  void give(nb::str const& name, nb::handle parts, int wire, nb::handle when);
  void fail(std::string words);

 private:
  /// What one tensor needs until its last copy was seen to end.
  struct holding {
    std::string name;
    kept owner, when;
  };
  struct answer {
    source_tensor tensor;
    std::string failure;
  };
  void deliver(answer what);
  void ask(std::uint32_t index);

  std::shared_ptr<engine> loop_; // goes last
  std::vector<tensor_info> stated_;
  device where_;
  // On the loop's thread.
  asio::steady_timer given_; // cancelled when there is an answer
  std::optional<answer> answer_;
  // Both.
  std::mutex mutex_;
  std::optional<std::uint32_t> asked_;
  bool over_ = false;
  std::shared_ptr<task_of<std::optional<std::uint32_t>>> waiting_;
};

void bridge::ask(std::uint32_t index) {
  std::shared_ptr<task_of<std::optional<std::uint32_t>>> waiting;
  {
    std::scoped_lock const lock(mutex_);
    waiting.swap(waiting_);
    if (!waiting) asked_ = index;
  }
  if (waiting) waiting->end(nullptr, index);
}

awaitable<source_tensor> bridge::next(std::uint32_t index) {
  answer_.reset();
  given_.expires_at(asio::steady_timer::time_point::max());
  ask(index);
  auto const [woken] = co_await given_.async_wait(compat::as_result);
  static_cast<void>(woken);
  if (!answer_) throw std::system_error(asio::error::operation_aborted);
  if (!answer_->failure.empty()) throw std::runtime_error(answer_->failure);
  source_tensor tensor = std::move(answer_->tensor);
  answer_.reset();
  co_return tensor;
}

void bridge::finish() {
  std::shared_ptr<task_of<std::optional<std::uint32_t>>> waiting;
  {
    std::scoped_lock const lock(mutex_);
    over_ = true;
    asked_.reset();
    waiting.swap(waiting_);
  }
  if (waiting) waiting->end(nullptr, std::nullopt);
}

std::shared_ptr<task_of<std::optional<std::uint32_t>>> bridge::wanted(std::weak_ptr<task> const& send) {
  auto const made = std::make_shared<task_of<std::optional<std::uint32_t>>>();
  made->stopped_by([send] {
    if (auto const running = send.lock()) running->stop();
  });
  std::optional<std::uint32_t> asked;
  bool over = false;
  {
    std::scoped_lock const lock(mutex_);
    asked.swap(asked_);
    over = over_;
    if (!asked && !over) waiting_ = made;
  }
  if (asked || over) made->end(nullptr, asked);
  return made;
}

void bridge::deliver(answer what) {
  asio::post(loop_->context(), [self = shared_from_this(), what = std::move(what)]() mutable {
    self->answer_ = std::move(what);
    self->given_.cancel();
  });
}

void bridge::give(nb::str const& name, nb::handle parts, int wire, nb::handle when) {
  description const tensor(parts);
  auto held = std::make_shared<holding>();
  held->name = text_of(name);
  held->owner = tensor.owner();
  held->when = kept(when.ptr());
  auto view = tensor.view<std::byte const>(held->name);
  if (wire >= 0) view.sent_as(dtype_from(wire));
  answer made;
  made.tensor = source_tensor(view, std::move(held), ready_from(when));
  deliver(std::move(made));
}

void bridge::fail(std::string words) {
  answer made;
  made.failure = words.empty() ? "the iterator of tensors failed" : std::move(words);
  deliver(std::move(made));
}

/// Ends the questions with the send that asks them.
class finishing {
 public:
  explicit finishing(std::shared_ptr<bridge> what) : what_(std::move(what)) {}
  finishing(finishing const&) = delete;
  finishing& operator=(finishing const&) = delete;
  ~finishing() { what_->finish(); }

 private:
  std::shared_ptr<bridge> what_;
};

awaitable<send_report> send_from(awaitable<send_report> send, std::shared_ptr<bridge> source) {
  finishing const ends(std::move(source));
  send_report report = co_await std::move(send);
  co_return report;
}

class sending_handle {
 public:
  /// What a version on its way is read from, and what it waits for.
  using owner = std::pair<std::shared_ptr<prepared>, kept>;

  sending_handle(std::shared_ptr<engine> loop, sending what, owner of)
      : loop_(std::move(loop)), sending_(std::move(what)), of_(std::move(of)) {}
  sending_handle(sending_handle const&) = delete;
  sending_handle& operator=(sending_handle const&) = delete;
  ~sending_handle() {
    if (loop_->forked()) {
      new sending(std::move(sending_)); // the parent's
      return;
    }
    // It is given up, and copies that run then still read the tensors: they are kept until it has ended.
    loop_->start<send_report>(sending_.done(), std::move(of_));
  }
  std::uint64_t version() const noexcept { return sending_.version(); }
  operation source_free(nb::object const& self) {
    return begin<done>(loop_, with_result(sending_.source_free()), kept(self.ptr()), no_result);
  }
  operation finish(nb::object const& self) {
    return begin<send_report>(loop_, sending_.done(), kept(self.ptr()),
                              [](send_report const& report) { return to_python(report); });
  }

 private:
  std::shared_ptr<engine> loop_; // goes last
  sending sending_;
  owner of_;
};

/// A version that is held, and what it is read from.
class held_handle {
 public:
  held_handle(std::shared_ptr<engine> loop, held_version what, sending_handle::owner of)
      : loop_(std::move(loop)), held_(std::move(what)), of_(std::move(of)) {}
  held_handle(held_handle const&) = delete;
  held_handle& operator=(held_handle const&) = delete;
  ~held_handle() {
    if (loop_->forked()) {
      new held_version(std::move(held_)); // the parent's
      return;
    }
    // Receivers may read the tensors until they hear of it: they are kept until then.
    loop_->start<done>(with_result(held_.release()), std::move(of_));
    without_gil const released;
    held_ = held_version();
  }
  std::uint64_t version() const noexcept { return held_.version(); }
  operation release(nb::object const& self) {
    return begin<done>(loop_, with_result(held_.release()), kept(self.ptr()), no_result);
  }

 private:
  std::shared_ptr<engine> loop_; // goes last
  held_version held_;
  sending_handle::owner of_;
};

/// The version outlives the operation that starts it, and what it is read from must, too.
awaitable<std::shared_ptr<sending_handle>>
start_keeping(std::shared_ptr<engine> loop, awaitable<sending> starting, sending_handle::owner owner) {
  sending started = co_await std::move(starting);
  co_return std::make_shared<sending_handle>(std::move(loop), std::move(started), std::move(owner));
}

class sender_handle {
 public:
  sender_handle(std::string path, nb::dict const& knobs) {
    sender_options const options = sender_options_from(knobs);
    without_gil const released;
    auto loop = make_engine();
    sender_ = std::make_shared<sender>(loop->executor(), std::move(path), options);
    loop_ = std::move(loop);
  }
  sender_handle(sender_handle const&) = delete;
  sender_handle& operator=(sender_handle const&) = delete;
  ~sender_handle() { destroy(); }

  /// Ends it as C++'s destructor does; later calls raise.
  void destroy() {
    if (!loop_) return;
    // Another thread that gets the GIL meanwhile finds it closed.
    auto loop = std::move(loop_);
    auto own = std::move(sender_);
    without_gil const released;
    if (loop->forked())
      new std::shared_ptr<sender>(std::move(own)); // the parent's
    else
      own.reset();
    loop.reset();
  }

  std::shared_ptr<prepared> prepare(std::shared_ptr<sources> of) {
    auto made = std::make_shared<prepared>();
    // Another thread may destroy this meanwhile.
    auto const loop = loop_;
    auto own = open();
    {
      without_gil const released;
      made->tensors = std::exchange(own, nullptr)->prepare(of->all());
    }
    made->of = std::move(of);
    return made;
  }
  operation send(std::uint64_t version, std::shared_ptr<prepared> const& what, nb::handle when) {
    auto owner = std::make_pair(what, kept(when.ptr()));
    return begin<send_report>(loop_, open()->send_weights(version, what->tensors, ready_from(when)),
                              std::move(owner), [](send_report const& report) { return to_python(report); });
  }
  /// The same, of tensors that are looked at now, if they are those that were `seen`; nothing if they are
  /// not.
  nb::object send_again(std::uint64_t version, seen_tensors const& seen, nb::handle pairs,
                        nb::tuple const& types, nb::handle when) {
    // Another thread may destroy this where torch lets the GIL go.
    auto const loop = loop_;
    auto const own = open();
    own->rouse(); // its thread and the receivers wake while the tensors are looked at
    exchange const torch(types);
    if (!seen.table->same(pairs, torch)) return nb::none();
    auto what = std::make_shared<prepared>();
    what->tensors = seen.tensors;
    what->of = std::make_shared<sources>(seen.table);
    operation sending = begin<send_report>(loop, own->send_weights(version, what->tensors, ready_from(when)),
                                           std::make_pair(what, kept(when.ptr())),
                                           [](send_report const& report) { return to_python(report); });
    // Only now, for it takes longer than all of the above. Until this returns the caller's pairs keep the
    // tensors, and nobody can give them other memory.
    try {
      what->of->own(pairs, torch);
    } catch (...) {
      sending.stop();
      throw;
    }
    return nb::cast(std::move(sending));
  }
  operation start(std::uint64_t version, std::shared_ptr<prepared> const& what, nb::handle when) {
    sending_handle::owner owner(what, kept(when.ptr()));
    auto starting = open()->start(version, what->tensors, ready_from(when));
    auto make = [](std::shared_ptr<sending_handle> const& started) { return nb::cast(started); };
    return begin<std::shared_ptr<sending_handle>>(
        loop_, start_keeping(loop_, std::move(starting), std::move(owner)), 0, make);
  }
  std::shared_ptr<held_handle> hold(std::uint64_t version, std::shared_ptr<prepared> const& what,
                                    nb::handle when) {
    sending_handle::owner owner(what, kept(when.ptr()));
    return std::make_shared<held_handle>(loop_, open()->hold(version, what->tensors, ready_from(when)),
                                         std::move(owner));
  }
  std::shared_ptr<bridge> source(nb::list const& stated, int ordinal) {
    open();
    std::vector<tensor_info> infos;
    for (nb::handle const one : stated) {
      nb::tuple const parts = nb::cast<nb::tuple>(one);
      tensor_info info;
      info.name = text_of(parts[0]);
      info.type = dtype_from(nb::cast<int>(parts[1]));
      info.dims = shape_from(parts[2]);
      infos.push_back(std::move(info));
    }
    return std::make_shared<bridge>(loop_, std::move(infos),
                                    ordinal < 0 ? device::host() : device::cuda(ordinal));
  }
  nb::tuple send_source(std::uint64_t version, std::shared_ptr<bridge> const& from) {
    auto const running =
        loop_->start<send_report>(send_from(open()->send_weights(version, *from), from), from);
    operation send(loop_, running, [task = running.get()] { return to_python(task->take()); });
    std::weak_ptr<task> const watched = running;
    auto loop = loop_;
    nb::object const wanted = nb::cpp_function([loop, from, watched] {
      auto const next = from->wanted(watched);
      return operation(loop, next, [task = next.get()] {
        auto const index = task->take();
        return index ? nb::object(nb::int_(*index)) : nb::object(nb::none());
      });
    });
    return nb::make_tuple(std::move(send), wanted);
  }
  operation wait_for_receivers(std::size_t count, double seconds) {
    auto const limit = milliseconds(static_cast<std::int64_t>(std::min(std::max(seconds, 0.0), 1e9) * 1000));
    return begin<std::size_t>(loop_, open()->wait_for_receivers(count, limit), 0,
                              [](std::size_t there) { return nb::object(nb::int_(there)); });
  }
  operation receivers() {
    return begin<std::vector<connected_receiver>>(loop_, open()->receivers(), 0,
                                                  [](std::vector<connected_receiver> const& all) {
                                                    nb::list list;
                                                    for (auto const& one : all) list.append(to_python(one));
                                                    return nb::object(list);
                                                  });
  }
  void share(shared_block const& block) { open()->share(block.memory); }
  operation release_memory() {
    return begin<done>(loop_, with_result(open()->release_memory()), 0, no_result);
  }
  operation close() { return begin<done>(loop_, with_result(open()->close()), 0, no_result); }
  bool is_open() const noexcept { return loop_ != nullptr && !loop_->forked(); }

 private:
  std::shared_ptr<sender> const& open() {
    if (!loop_) throw transfer_error(errc::not_open, "this sender was closed");
    if (loop_->forked())
      throw transfer_error(errc::not_open,
                           "this sender belongs to the process that this one was forked from; make a "
                           "sender of your own");
    return sender_;
  }
  std::shared_ptr<engine> loop_;
  std::shared_ptr<sender> sender_; // goes before the loop
};

int shared_block_buffer(PyObject* self, Py_buffer* view, int flags) {
  auto& memory = nb::inst_ptr<shared_block>(nb::handle(self))->memory;
  return PyBuffer_FillInfo(view, self, memory.data(), static_cast<Py_ssize_t>(memory.size()), 0, flags);
}
PyType_Slot shared_block_slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(&shared_block_buffer)},
    {0, nullptr},
};

} // namespace

void bind_sending(nb::module_& module) {
  nb::class_<prepared>(module, "Prepared")
      .def_prop_ro("size", [](prepared const& self) { return self.of->all().size(); })
      .def("seen", [](prepared const& self) -> nb::object {
        if (!self.of->all_exchanged()) return nb::none();
        return nb::cast(std::make_shared<seen_tensors>(seen_tensors{self.tensors, self.of->table()}));
      });
  nb::class_<seen_tensors>(module, "Seen");
  nb::class_<shared_block>(module, "SharedMemory", nb::type_slots(shared_block_slots),
                           "Host memory that receivers can map as it is: tensors in it are copied once, by "
                           "each receiver, instead of twice\n"
                           "through a ring. Give it to `Sender.share`, and make arrays in it "
                           "(`numpy.frombuffer(memory, ...)`): it is a\n"
                           "writable buffer. Zero-filled, page-aligned.\n\n"
                           "Receivers can read all of it at any time: put nothing else there. The memory "
                           "lives as long as this object, an\n"
                           "array of it, a sender that it was given to, or a receiver that has mapped it.")
      .def(nb::init<std::uint64_t>(), nb::arg("bytes"))
      .def("__len__", [](shared_block const& self) { return self.memory.size(); });
  nb::class_<bridge>(module, "Bridge")
      .def("give", &bridge::give, nb::arg("name"), nb::arg("tensor"), nb::arg("wire"), nb::arg("when").none())
      .def("fail", &bridge::fail, nb::arg("words"));
  nb::class_<sending_handle>(module, "Sending")
      .def_prop_ro("version", &sending_handle::version)
      .def("source_free", [](nb::object self) { return nb::cast<sending_handle&>(self).source_free(self); })
      .def("done", [](nb::object self) { return nb::cast<sending_handle&>(self).finish(self); });
  nb::class_<held_handle>(module, "Held")
      .def_prop_ro("version", &held_handle::version)
      .def("release", [](nb::object self) { return nb::cast<held_handle&>(self).release(self); });
  nb::class_<sender_handle>(module, "Sender")
      .def(nb::init<std::string, nb::dict const&>(), nb::arg("path"), nb::arg("knobs"))
      .def("prepare", &sender_handle::prepare, nb::arg("tensors"))
      .def("send", &sender_handle::send, nb::arg("version"), nb::arg("tensors"), nb::arg("when").none())
      .def("send_again", &sender_handle::send_again, nb::arg("version"), nb::arg("seen"), nb::arg("pairs"),
           nb::arg("types"), nb::arg("when").none())
      .def("start", &sender_handle::start, nb::arg("version"), nb::arg("tensors"), nb::arg("when").none())
      .def("hold", &sender_handle::hold, nb::arg("version"), nb::arg("tensors"), nb::arg("when").none())
      .def("source", &sender_handle::source, nb::arg("stated"), nb::arg("ordinal"))
      .def("send_source", &sender_handle::send_source, nb::arg("version"), nb::arg("source"))
      .def("wait_for_receivers", &sender_handle::wait_for_receivers, nb::arg("count"), nb::arg("seconds"))
      .def("receivers", &sender_handle::receivers)
      .def("share", &sender_handle::share, nb::arg("memory"))
      .def("release_memory", &sender_handle::release_memory)
      .def("close", &sender_handle::close)
      .def("destroy", &sender_handle::destroy)
      .def_prop_ro("is_open", &sender_handle::is_open);
}

} // namespace ropeway::python
