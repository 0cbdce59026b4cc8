#include "checkpoint/read_core.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sys/stat.h>
#include <utility>

#include "checkpoint/state.hpp"
#include "checkpoint/text.hpp"

namespace ropeway {
namespace {

constexpr std::uint32_t deepest = 64;
constexpr std::size_t strictest = 65536; // no file demands more of memory

} // namespace

read_core::read_core(checkpoint from, read_options const& options) : from_(std::move(from)) {
  if (options.queue_depth() == 0 || options.queue_depth() > deepest)
    throw transfer_error(errc::invalid_argument, "queue_depth is " + std::to_string(options.queue_depth()) +
                                                     "; it must be 1 to " + std::to_string(deepest));
  for (auto const& input : from_.internals().inputs)
    direct_.push_back(options.direct() ? input.open_direct() : direct_file());
  slots_.resize(options.queue_depth());
  outcomes_.resize(options.queue_depth());
  if (direct()) {
    std::size_t const size = slots_.size() * bounce_size + strictest;
    memory_ = std::make_unique_for_overwrite<std::byte[]>(size);
    auto const address = reinterpret_cast<std::uintptr_t>(memory_.get());
    bounce_ = memory_.get() + (strictest - address % strictest) % strictest;
  }
  for (std::uint32_t i = options.queue_depth(); i-- > 0;) free_.push_back(i);
  engine_ = make_engine(options);
}

// The memory of the reads is the caller's: nothing may write there once we are gone. If even waiting fails,
// ending the process is all that is left, and a throw from here does that.
read_core::~read_core() { cancel(); }

stored_tensor const& read_core::tensor_of(read const& which) const { return from_.tensors()[which.tensor]; }

void read_core::check(std::size_t tensor, std::uint64_t offset, std::uint64_t bytes) const {
  if (tensor >= from_.tensors().size())
    throw transfer_error(errc::invalid_argument, "tensor number " + std::to_string(tensor) + " of " +
                                                     std::to_string(from_.tensors().size()));
  stored_tensor const& what = from_.tensors()[tensor];
  if (offset <= what.bytes && bytes <= what.bytes - offset) return;
  throw transfer_error(errc::invalid_argument,
                       std::to_string(bytes) + " bytes from byte " + std::to_string(offset) + " of tensor " +
                           in_quotes(what.info.name) + ", which has " + std::to_string(what.bytes))
      .tensor(what.info.name);
}

read_core::ticket read_core::start(std::size_t tensor, std::uint64_t offset, std::span<std::byte> into) {
  check(tensor, offset, into.size());
  stored_tensor const& what = from_.tensors()[tensor];
  ticket const id = ++last_;
  read& added = reads_[id];
  added.id = id;
  added.tensor = tensor;
  added.next = what.offset + offset;
  added.end = added.next + into.size();
  added.to = into.data();
  if (into.empty()) {
    ended_.push_back(id);
  } else {
    waiting_.push_back(id);
    if (!free_.empty()) fill();
  }
  return id;
}

void read_core::fill() {
  while (!free_.empty() && !waiting_.empty()) {
    auto const at = reads_.find(waiting_.front());
    if (at == reads_.end() || at->second.next == at->second.end) {
      waiting_.pop_front();
      continue;
    }
    read& which = at->second;
    direct_file const& file = direct_[tensor_of(which).file];
    alignment_rule const rule{.offset = file.offset_alignment, .memory = file.memory_alignment};
    std::uint32_t const number = free_.back();
    slot& place = slots_[number];
    place.what = next_part(which.next, which.end, reinterpret_cast<std::uintptr_t>(which.to), rule);
    place.to = which.to;
    place.owner = &which;
    place.done = 0;
    place.retried = false;
    free_.pop_back();
    which.next += place.what.wanted;
    which.to += place.what.wanted;
    ++which.in_flight;
    issue(number);
  }
  engine_->submit();
}

void read_core::issue(std::uint32_t number) {
  slot& place = slots_[number];
  std::uint32_t const file = tensor_of(*place.owner).file;
  io_request request;
  request.direct = place.what.direct;
  request.fd = request.direct ? direct_[file].fd.get() : from_.internals().inputs[file].fd();
  request.offset = place.what.begin + place.done;
  request.into = (place.what.bounce ? bounce_of(number) : place.to) + place.done;
  request.bytes = place.what.bytes - place.done;
  engine_->queue(number, request);
}

void read_core::progress(bool block) {
  if (free_.size() == slots_.size()) block = false; // nothing is in flight
  std::size_t const count = engine_->take(outcomes_, block);
  for (std::size_t i = 0; i < count; ++i) complete(outcomes_[i]);
  fill();
}

void read_core::complete(io_outcome const& outcome) {
  slot& place = slots_[outcome.slot];
  read& owner = *place.owner;
  std::uint32_t const enough = place.what.skip + place.what.wanted;
  if (outcome.result > 0) {
    place.done += static_cast<std::uint32_t>(outcome.result);
    if (place.done >= enough) {
      if (place.what.bounce)
        std::memcpy(place.to, bounce_of(outcome.slot) + place.what.skip, place.what.wanted);
      return end_part(outcome.slot);
    }
    // Cut short, perhaps at an offset that only the page cache serves.
    place.what.direct = false;
    place.what.bytes = enough;
    return issue(outcome.slot);
  }
  if (outcome.result == -EINTR) return issue(outcome.slot);
  bool const refused = outcome.result == -EINVAL || outcome.result == -EOPNOTSUPP;
  if ((refused || outcome.result == -EAGAIN) && !std::exchange(place.retried, true)) {
    // Some file systems take O_DIRECT and then refuse the read: never again for this file.
    if (refused && place.what.direct) direct_[tensor_of(owner).file].offset_alignment = 0;
    place.what.direct = false;
    place.what.bytes = enough;
    return issue(outcome.slot);
  }
  if (!owner.error) owner.error = failure(owner, place.what.begin + place.done, -outcome.result);
  stop(owner);
  end_part(outcome.slot);
}

void read_core::end_part(std::uint32_t number) {
  read& owner = *std::exchange(slots_[number].owner, nullptr);
  free_.push_back(number);
  --owner.in_flight;
  if (owner.has_ended()) ended_.push_back(owner.id);
}

transfer_error read_core::failure(read const& which, std::uint64_t at, int number) const {
  stored_tensor const& tensor = tensor_of(which);
  auto const& path = from_.files()[tensor.file];
  if (number != 0) {
    auto error = system_failure(
        number, path, "can't read tensor " + in_quotes(tensor.info.name) + " at byte " + std::to_string(at));
    error.tensor(tensor.info.name);
    return error;
  }
  // Parts beyond the end fail in any order: what counts is where the file ends now.
  struct stat status {};
  std::uint64_t const end = ::fstat(from_.internals().inputs[tensor.file].fd(), &status) == 0
                                ? static_cast<std::uint64_t>(status.st_size)
                                : at;
  return transfer_error(errc::bad_checkpoint, label(path) + ": ends at byte " +
                                                  std::to_string(std::min(at, end)) + ", before tensor " +
                                                  in_quotes(tensor.info.name) +
                                                  " does; it shrank after it was opened")
      .tensor(tensor.info.name);
}

std::optional<read_core::finished> read_core::next_finished() {
  while (!ended_.empty()) {
    ticket const id = ended_.front();
    ended_.pop_front();
    auto node = reads_.extract(id);
    if (node) return finished{id, std::move(node.mapped().error)};
  }
  return {};
}

std::optional<read_core::finished> read_core::take(ticket id) {
  auto const at = reads_.find(id);
  if (at == reads_.end())
    throw transfer_error(errc::invalid_argument,
                         "read " + std::to_string(id) + " was never started, or was reported already");
  if (!at->second.has_ended()) return {};
  finished result{id, std::move(at->second.error)};
  reads_.erase(at);
  while (!ended_.empty() && !reads_.contains(ended_.front())) ended_.pop_front();
  return result;
}

void read_core::drop(ticket id) {
  auto const at = reads_.find(id);
  if (at == reads_.end() || at->second.has_ended()) return;
  stop(at->second);
  if (at->second.has_ended()) ended_.push_back(id);
}

void read_core::cancel() {
  for (auto& [id, which] : reads_) stop(which);
  waiting_.clear();
  while (free_.size() < slots_.size()) progress(true);
  reads_.clear();
  ended_.clear();
}

bool read_core::direct() const noexcept {
  for (auto const& file : direct_)
    if (file.offset_alignment != 0) return true;
  return false;
}

} // namespace ropeway
