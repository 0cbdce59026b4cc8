#include "cli/host_window.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "ropeway/error.hpp"

namespace ropeway::cli {

host_window::host_window(device where) : where_(where) {
  if (!where.is_cuda()) return;
  auto const backends = memory::system_backends();
  auto const backend = backends->get(where);
  buffer_ = backends->get(device::host())->make_region(window_bytes).memory;
  registered_ = backend->register_host(buffer_);
  queue_ = backend->make_queue();
}

host_window::~host_window() = default;

void host_window::copy(std::byte const* from, device from_where, std::byte* to, device to_where,
                       std::uint64_t bytes) {
  memory::copy_op op;
  op.from = from;
  op.from_where = from_where;
  op.to = to;
  op.to_where = to_where;
  op.bytes = bytes;
  queue_->copy({&op, 1});
}

void host_window::finish() {
  auto const ticket = queue_->mark();
  for (;;) {
    auto const now = queue_->poll();
    if (now.error)
      throw transfer_error(now.error, "copying between " + to_string(where_) + " and the host failed");
    if (now.completed >= ticket) return;
    pollfd ready{queue_->event_fd(), POLLIN, 0};
    // The limit is for devices that fail without a word; poll() asks them.
    ::poll(&ready, 1, 100);
    std::uint64_t events = 0;
    if (ready.revents & POLLIN) [[maybe_unused]]
      auto const drained = ::read(queue_->event_fd(), &events, sizeof events);
  }
}

std::span<std::byte> host_window::buffer() const noexcept { return {buffer_->data(), window_bytes}; }

void host_window::queue_to_device(std::uint64_t buffer_offset, std::byte* to, std::uint64_t bytes) {
  copy(buffer_->data() + buffer_offset, device::host(), to, where_, bytes);
}

void host_window::read(std::byte const* from, std::uint64_t bytes, reader const& see) {
  for (std::uint64_t at = 0; at < bytes;) {
    auto const part = std::min(window_bytes, bytes - at);
    if (where_.is_cuda()) {
      copy(from + at, where_, buffer_->data(), device::host(), part);
      finish();
    }
    see({where_.is_cuda() ? buffer_->data() : from + at, part});
    at += part;
  }
}

void host_window::change(std::byte* memory, std::uint64_t bytes, changer const& change) {
  for (std::uint64_t at = 0; at < bytes;) {
    auto const part = std::min(window_bytes, bytes - at);
    if (where_.is_cuda()) {
      copy(memory + at, where_, buffer_->data(), device::host(), part);
      finish();
      change({buffer_->data(), part}, at);
      queue_to_device(0, memory + at, part);
      finish();
    } else {
      change({memory + at, part}, at);
    }
    at += part;
  }
}

} // namespace ropeway::cli
