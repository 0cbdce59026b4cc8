#include "ropeway/sender.hpp"

#include "api/await.hpp"
#include "api/with_backends.hpp"
#include "session/sender_core.hpp"

namespace ropeway {

using detail::await;
using detail::completion;
using detail::failure;
using detail::hold_operation;
using detail::nothing;
using detail::send_operation;
using detail::stop_request;
using detail::without_result;

namespace {

std::shared_ptr<send_operation> make_operation(std::shared_ptr<detail::sender_core> const& core,
                                               std::uint64_t version, detail::send_call call,
                                               ready_after when) {
  if (!call.set)
    throw transfer_error(errc::invalid_argument,
                         "the prepared tensors are empty: call sender::prepare first");
  auto operation = std::make_shared<send_operation>();
  operation->owner = core;
  operation->executor = core->executor();
  operation->version = version;
  operation->set = std::move(call.set);
  operation->when = when;
  operation->called = call.at;
  return operation;
}

void stop_with(std::shared_ptr<stop_request> const& stop, std::shared_ptr<detail::sender_core> const& core,
               std::shared_ptr<send_operation> const& operation) {
  std::weak_ptr<detail::sender_core> const weak = core;
  stop->attach([weak, operation] {
    if (auto const alive = weak.lock()) alive->post_stop(operation);
  });
}

} // namespace

sender detail::make_sender(any_io_executor executor, std::string path, sender_options options,
                           std::shared_ptr<memory::backends> memory) {
  auto core = std::make_shared<sender_core>(std::move(executor), std::move(path), std::move(options),
                                            std::move(memory));
  core->start();
  return sender(std::move(core));
}

sender::sender(any_io_executor executor, std::string path, sender_options options)
    : sender(detail::make_sender(std::move(executor), std::move(path), std::move(options),
                                 memory::system_backends())) {}

sender& sender::operator=(sender&& other) noexcept {
  if (this == &other) return *this;
  if (core_) core_->abandon();
  core_ = std::move(other.core_);
  return *this;
}

sender::~sender() {
  if (core_) core_->abandon();
}

any_io_executor sender::get_executor() const { return core_->executor(); }
std::string const& sender::path() const noexcept { return core_->path(); }

// ---- collecting ----

sender::collector::collector(detail::sender_core& core) : core_(core), last_(core.sets().last()) {
  core_.rouse(); // as a rule this is for a send, and it takes a while
  if (!last_) differ();
}
sender::collector::~collector() = default;

/// From here on this is a set of its own.
void sender::collector::differ() {
  set_ = core_.sets().make();
  set_->layout = last_ ? last_->layout : core_.last_layout();
  known_ = set_->layout != nullptr;
  if (known_) set_->views.reserve(set_->layout->manifest.tensors().size());
  if (auto const before = std::exchange(last_, nullptr))
    set_->views.assign(before->views.begin(), before->views.begin() + static_cast<std::ptrdiff_t>(same_));
}

void sender::collector::add(tensor_view const& tensor) {
  if (last_) {
    if (last_->record.next_is(tensor, place_)) {
      ++same_;
      return;
    }
    differ();
  }
  auto const index = static_cast<std::uint32_t>(set_->views.size());
  if (known_) {
    auto const& manifest = set_->layout->manifest;
    known_ = index < manifest.tensors().size() &&
             manifest.same_tensor(index, tensor.name(), tensor.wire_type(), tensor.dims());
    if (!known_) infos_.assign(manifest.tensors().begin(), manifest.tensors().begin() + index);
  }
  if (!known_) infos_.push_back({std::string(tensor.name()), tensor.wire_type(), tensor.dims()});
  set_->views.push_back(tensor);
}

void sender::collector::add(std::span<tensor_view const> tensors) {
  // Views and their names leave the caches between two updates, and there are thousands.
  constexpr std::size_t views_ahead = 16, names_ahead = 8;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (i + views_ahead < tensors.size()) {
      auto const* const view = reinterpret_cast<std::byte const*>(&tensors[i + views_ahead]);
      __builtin_prefetch(view);
      __builtin_prefetch(view + 63); // the first extents
    }
    if (i + names_ahead < tensors.size()) {
      std::string_view const name = tensors[i + names_ahead].name();
      __builtin_prefetch(name.data());
      __builtin_prefetch(name.data() + name.size());
    }
    add(tensors[i]);
  }
}

detail::send_call sender::collector::finish() { return {end(), began_}; }

std::shared_ptr<detail::tensor_set> sender::collector::end() {
  if (last_) {
    if (same_ == last_->views.size()) return std::move(last_);
    differ();
  }
  try {
    if (known_ && set_->views.size() != set_->layout->manifest.tensors().size()) {
      auto const all = set_->layout->manifest.tensors();
      infos_.assign(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(set_->views.size()));
      known_ = false;
    }
    if (!known_) {
      auto manifest = plan::manifest::cut(std::move(infos_), core_.options().bucket_bytes());
      set_->layout = std::make_shared<session::layout>(std::move(manifest), core_.instance());
      core_.keep_layout(set_->layout);
    }
    auto const& manifest = set_->layout->manifest;
    plan::gather const rules(manifest);
    for (std::uint32_t i = 0; i < set_->views.size(); ++i) {
      auto& view = set_->views[i];
      view.name(set_->layout->name(i)); // the caller's may be gone when it is needed
      if (manifest.tensor_bytes(i) != 0) rules.check(i, view);
      if (view.where().is_cuda() && !set_->where.is_cuda()) set_->where = view.where();
    }
    for (auto const& view : set_->views) set_->record.add(view);
    core_.sets().keep_last(set_);
  } catch (transfer_error const& error) { set_->error = failure(error); }
  return std::move(set_);
}

detail::send_call sender::collect(tensor_source& source) {
  auto set = std::make_shared<detail::tensor_set>();
  set->source = &source;
  return {std::move(set), std::chrono::steady_clock::now()};
}

detail::send_call sender::collect(slot_writer& writer) {
  auto set = std::make_shared<detail::tensor_set>();
  set->writer = &writer;
  return {std::move(set), std::chrono::steady_clock::now()};
}

// ---- operations ----

void sender::begin_send(core_pointer const& core, std::uint64_t version, detail::send_call call,
                        ready_after when, std::unique_ptr<completion<send_report>> done,
                        std::shared_ptr<stop_request> stop) {
  if (!call.set) return done->complete(failure(errc::invalid_argument, "the prepared tensors are empty"), {});
  auto const operation = make_operation(core, version, std::move(call), when);
  operation->on_done = std::move(done);
  core->post_begin(operation);
  stop_with(stop, core, operation);
}

void sender::begin_start(core_pointer const& core, std::uint64_t version, detail::send_call call,
                         ready_after when, std::unique_ptr<completion<sending>> done,
                         std::shared_ptr<stop_request> stop) {
  if (!call.set) return done->complete(failure(errc::invalid_argument, "the prepared tensors are empty"), {});
  auto const operation = make_operation(core, version, std::move(call), when);
  operation->on_started = std::move(done);
  core->post_begin(operation);
  stop_with(stop, core, operation);
}

void sender::begin_wait(core_pointer const& core, std::size_t count, milliseconds limit,
                        std::unique_ptr<completion<std::size_t>> done, std::shared_ptr<stop_request> stop) {
  core->post_wait(count, limit, std::move(done), std::move(stop));
}

void sender::begin_receivers(core_pointer const& core,
                             std::unique_ptr<completion<std::vector<connected_receiver>>> done) {
  core->post_receivers(std::move(done));
}

void sender::rouse() { core_->rouse(); }

void sender::share(shared_memory const& memory) {
  if (!memory) throw transfer_error(errc::invalid_argument, "there is no memory to share");
  core_->post_share(memory.block_);
}

void sender::begin_release(core_pointer const& core, std::unique_ptr<completion<nothing>> done,
                           std::shared_ptr<stop_request> stop) {
  core->post_release(std::move(done), std::move(stop));
}

awaitable<void> sender::release_memory() {
  auto start = [core = core_](auto done, auto stop) {
    begin_release(core, std::move(done), std::move(stop));
  };
  return without_result(await<nothing>(core_->executor(), std::move(start)));
}

void sender::begin_close(core_pointer const& core, std::unique_ptr<completion<nothing>> done) {
  core->post_close(std::move(done));
}

awaitable<send_report> sender::await_send(core_pointer core, std::uint64_t version, detail::send_call call,
                                          ready_after when) {
  auto start = [core, version, call, when](auto done, auto stop) {
    begin_send(core, version, call, when, std::move(done), std::move(stop));
  };
  return await<send_report>(core->executor(), std::move(start));
}

awaitable<sending> sender::await_start(core_pointer core, std::uint64_t version, detail::send_call call,
                                       ready_after when) {
  auto start = [core, version, call, when](auto done, auto stop) {
    begin_start(core, version, call, when, std::move(done), std::move(stop));
  };
  return await<sending>(core->executor(), std::move(start));
}

awaitable<std::size_t> sender::wait_for_receivers(std::size_t count, milliseconds limit) {
  auto start = [core = core_, count, limit](auto done, auto stop) {
    begin_wait(core, count, limit, std::move(done), std::move(stop));
  };
  return await<std::size_t>(core_->executor(), std::move(start));
}

awaitable<std::vector<connected_receiver>> sender::receivers() {
  auto start = [core = core_](auto done, auto) { begin_receivers(core, std::move(done)); };
  return await<std::vector<connected_receiver>>(core_->executor(), std::move(start));
}

awaitable<void> sender::close() {
  auto start = [core = core_](auto done, auto) { begin_close(core, std::move(done)); };
  return without_result(await<nothing>(core_->executor(), std::move(start)));
}

held_version sender::begin_hold(std::uint64_t version, set_pointer set, ready_after when) {
  if (!set)
    throw transfer_error(errc::invalid_argument,
                         "the prepared tensors are empty: call sender::prepare first");
  if (set->error) throw set->error.error();
  if (set->layout->sender != core_->instance())
    throw transfer_error(errc::invalid_argument,
                         "these tensors were prepared by another sender; prepare them with this one");
  auto operation = std::make_shared<hold_operation>();
  operation->owner = core_;
  operation->executor = core_->executor();
  operation->version = version;
  operation->set = std::move(set);
  operation->when = when;
  core_->post_hold(operation);
  return held_version(std::move(operation));
}

// ---- held_version ----

held_version& held_version::operator=(held_version&& other) noexcept {
  std::swap(operation_, other.operation_);
  return *this;
}

held_version::~held_version() {
  if (!operation_) return;
  if (auto const core = operation_->owner.lock()) core->abandon_hold(operation_);
}

std::uint64_t held_version::version() const noexcept { return operation_ ? operation_->version : 0; }
any_io_executor held_version::executor() const { return operation_->executor; }

void held_version::begin_release(operation_pointer const& operation,
                                 std::unique_ptr<completion<nothing>> done,
                                 std::shared_ptr<stop_request> stop) {
  auto const core = operation->owner.lock();
  if (!core) return done->complete(operation->stuck(), {}); // its destructor has seen to it
  core->post_release_hold(operation, std::move(done), std::move(stop));
}

awaitable<void> held_version::release() {
  auto start = [self = operation_](auto done, auto stop) {
    begin_release(self, std::move(done), std::move(stop));
  };
  return without_result(await<nothing>(executor(), std::move(start)));
}

// ---- sending ----

sending& sending::operator=(sending&& other) noexcept {
  std::swap(operation_, other.operation_);
  return *this;
}

sending::~sending() {
  if (!operation_) return;
  if (auto const core = operation_->owner.lock()) core->post_stop(operation_);
}

std::uint64_t sending::version() const noexcept { return operation_ ? operation_->version : 0; }
any_io_executor sending::executor() const { return operation_->executor; }

void sending::wait_source_free(operation_pointer const& operation, std::unique_ptr<completion<nothing>> done,
                               std::shared_ptr<stop_request> stop) {
  auto const core = operation->owner.lock();
  if (!core) return done->complete(failure(errc::not_open, "the sender was destroyed"), {});
  core->post_source_free(operation, std::move(done), std::move(stop));
}

void sending::wait_done(operation_pointer const& operation, std::unique_ptr<completion<send_report>> done,
                        std::shared_ptr<stop_request> stop) {
  auto const core = operation->owner.lock();
  if (!core) return done->complete(failure(errc::not_open, "the sender was destroyed"), {});
  core->post_done(operation, std::move(done), std::move(stop));
}

awaitable<void> sending::source_free() {
  auto start = [self = operation_](auto done, auto stop) {
    wait_source_free(self, std::move(done), std::move(stop));
  };
  return without_result(await<nothing>(executor(), std::move(start)));
}

awaitable<send_report> sending::done() {
  auto start = [self = operation_](auto done, auto stop) {
    wait_done(self, std::move(done), std::move(stop));
  };
  return await<send_report>(executor(), std::move(start));
}

} // namespace ropeway
