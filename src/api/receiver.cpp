#include "ropeway/receiver.hpp"

#include "api/await.hpp"
#include "api/with_backends.hpp"
#include "session/receiver_core.hpp"

namespace ropeway {

using detail::await;
using detail::completion;
using detail::failure;
using detail::nothing;
using detail::stop_request;
using detail::without_result;

// ---- bucket ----

bucket& bucket::operator=(bucket&& other) noexcept {
  std::swap(held_, other.held_);
  return *this;
}
bucket::~bucket() { release(); }
std::uint32_t bucket::number() const noexcept { return held_ ? held_->number : 0; }
std::span<bucket_piece const> bucket::pieces() const noexcept {
  return held_ ? std::span<bucket_piece const>(held_->pieces) : std::span<bucket_piece const>();
}
void bucket::release(ready_after when) {
  if (held_) held_->release(when);
}

// ---- update ----

update& update::operator=(update&& other) noexcept {
  std::swap(operation_, other.operation_);
  return *this;
}
update::~update() {
  if (operation_) operation_->core->post_refuse(operation_, "the update was dropped unanswered");
}

std::uint64_t update::version() const noexcept { return operation_->what.version; }
std::uint64_t update::total_bytes() const noexcept { return operation_->what.total_bytes; }
std::uint32_t update::buckets() const noexcept { return operation_->what.buckets; }
std::span<tensor_info const> update::tensors() const noexcept { return operation_->manifest->tensors(); }
std::array<std::uint8_t, 16> update::layout() const noexcept { return operation_->manifest->layout(); }
any_io_executor update::executor() const { return operation_->core->executor(); }

void update::begin_load(operation_pointer const& operation, load_target into, ready_after when,
                        std::unique_ptr<completion<load_report>> done, std::shared_ptr<stop_request> stop) {
  operation->core->post_load(operation, std::move(into), when, std::move(done), std::move(stop));
}
void update::begin_bucket(operation_pointer const& operation,
                          std::unique_ptr<completion<std::optional<bucket>>> done,
                          std::shared_ptr<stop_request> stop) {
  operation->core->post_bucket(operation, std::move(done), std::move(stop));
}
void update::begin_commit(operation_pointer const& operation, std::unique_ptr<completion<load_report>> done,
                          std::shared_ptr<stop_request> stop) {
  operation->core->post_commit(operation, std::move(done), std::move(stop));
}

awaitable<load_report> update::await_load(operation_pointer operation, load_target into, ready_after when) {
  auto const executor = operation->core->executor();
  auto start = [operation, into, when](auto done, auto stop) {
    begin_load(operation, into, when, std::move(done), std::move(stop));
  };
  return await<load_report>(executor, std::move(start));
}
awaitable<std::optional<bucket>> update::await_bucket(operation_pointer operation) {
  auto const executor = operation->core->executor();
  auto start = [operation](auto done, auto stop) {
    begin_bucket(operation, std::move(done), std::move(stop));
  };
  return await<std::optional<bucket>>(executor, std::move(start));
}
awaitable<load_report> update::await_commit(operation_pointer operation) {
  auto const executor = operation->core->executor();
  auto start = [operation](auto done, auto stop) {
    begin_commit(operation, std::move(done), std::move(stop));
  };
  return await<load_report>(executor, std::move(start));
}

void update::refuse(std::string why) { operation_->core->post_refuse(operation_, std::move(why)); }
void update::not_now(milliseconds retry, std::string why) {
  operation_->core->post_not_now(operation_, retry, std::move(why));
}

// ---- receiver ----

receiver detail::make_receiver(any_io_executor executor, receiver_options options,
                               std::shared_ptr<memory::backends> memory) {
  return receiver(
      std::make_shared<receiver_core>(std::move(executor), std::move(options), std::move(memory)));
}

receiver::receiver(any_io_executor executor, receiver_options options)
    : receiver(detail::make_receiver(std::move(executor), std::move(options), memory::system_backends())) {}

receiver& receiver::operator=(receiver&& other) noexcept {
  if (this == &other) return *this;
  if (core_) core_->abandon();
  core_ = std::move(other.core_);
  return *this;
}
receiver::~receiver() {
  if (core_) core_->abandon();
}

any_io_executor receiver::get_executor() const { return core_->executor(); }
std::optional<std::uint64_t> receiver::version() const noexcept { return core_->version(); }
receiver_status receiver::status() const { return core_->status(); }

void receiver::begin_connect(core_pointer const& core, std::string path,
                             std::unique_ptr<completion<nothing>> done, std::shared_ptr<stop_request> stop) {
  core->post_connect(std::move(path), std::move(done), std::move(stop));
}
void receiver::begin_next(core_pointer const& core, std::unique_ptr<completion<std::optional<update>>> done,
                          std::shared_ptr<stop_request> stop) {
  core->post_next(std::move(done), std::move(stop));
}
void receiver::begin_close(core_pointer const& core, std::unique_ptr<completion<nothing>> done) {
  core->post_close(std::move(done));
}

awaitable<void> receiver::connect(std::string path) {
  auto start = [core = core_, path = std::move(path)](auto done, auto stop) {
    begin_connect(core, path, std::move(done), std::move(stop));
  };
  return without_result(await<nothing>(core_->executor(), std::move(start)));
}
awaitable<std::optional<update>> receiver::next_update() {
  auto start = [core = core_](auto done, auto stop) { begin_next(core, std::move(done), std::move(stop)); };
  return await<std::optional<update>>(core_->executor(), std::move(start));
}
awaitable<void> receiver::close() {
  auto start = [core = core_](auto done, auto) { begin_close(core, std::move(done)); };
  return without_result(await<nothing>(core_->executor(), std::move(start)));
}

} // namespace ropeway
