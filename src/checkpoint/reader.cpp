#include <utility>

#include "checkpoint/read_core.hpp"
#include "ropeway/checkpoint.hpp"

namespace ropeway {

std::string_view to_string(io_backend backend) noexcept {
  switch (backend) {
  case io_backend::automatic: return "automatic";
  case io_backend::io_uring: return "io_uring";
  case io_backend::pread: return "pread";
  }
  return "unknown";
}

read_options& read_options::backend(io_backend which) noexcept {
  backend_ = which;
  return *this;
}
read_options& read_options::queue_depth(std::uint32_t requests) noexcept {
  queue_depth_ = requests;
  return *this;
}
read_options& read_options::direct(bool yes) noexcept {
  direct_ = yes;
  return *this;
}

checkpoint_reader::checkpoint_reader(checkpoint from, read_options const& options)
    : core_(std::make_unique<read_core>(std::move(from), options)) {}
checkpoint_reader::checkpoint_reader(checkpoint_reader&&) noexcept = default;
checkpoint_reader& checkpoint_reader::operator=(checkpoint_reader&&) noexcept = default;
checkpoint_reader::~checkpoint_reader() = default;

checkpoint_reader::ticket checkpoint_reader::start(std::size_t tensor, std::uint64_t offset,
                                                   std::span<std::byte> into) {
  return core_->start(tensor, offset, into);
}

void checkpoint_reader::wait(ticket id) {
  for (;;) {
    if (auto const done = core_->take(id)) {
      if (done->error) throw *done->error;
      return;
    }
    core_->progress(true);
  }
}

void checkpoint_reader::wait_all() {
  std::optional<transfer_error> first;
  for (;;) {
    while (auto done = core_->next_finished())
      if (!first) first = std::move(done->error);
    if (core_->pending() == 0) break;
    core_->progress(true);
  }
  if (first) throw *first;
}

std::optional<checkpoint_reader::finished> checkpoint_reader::poll() {
  core_->progress(false);
  return core_->next_finished();
}

void checkpoint_reader::cancel() { core_->cancel(); }

void checkpoint_reader::cancel(ticket id) {
  core_->drop(id);
  while (!core_->take(id)) core_->progress(true);
}

std::size_t checkpoint_reader::pending() const noexcept { return core_->pending(); }
int checkpoint_reader::event_fd() { return core_->event_fd(); }
io_backend checkpoint_reader::backend() const noexcept { return core_->backend(); }
bool checkpoint_reader::direct() const noexcept { return core_->direct(); }
std::size_t checkpoint_reader::max_in_flight_seen() const noexcept { return core_->max_in_flight_seen(); }

} // namespace ropeway
