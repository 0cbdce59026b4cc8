#include "line.hpp"

#include <algorithm>
#include <cstring>
#include <set>
#include <sstream>
#include <stdexcept>

#include "api/with_backends.hpp"
#include "support/co_test.hpp"

namespace ropeway::testing {

setting host_setting(std::size_t receivers, std::uint32_t slots) {
  pairing how{"host to host", host_memory(), {}, {}};
  for (std::size_t i = 0; i < receivers; ++i) how.into.push_back({host_memory(), {}});
  return {std::move(how), slots};
}

setting mapped_setting(std::size_t receivers, std::uint32_t slots) {
  setting mapped = host_setting(receivers, slots);
  mapped.how.name = "shared host to host";
  mapped.how.from = shared_host_memory();
  mapped.how.way = route::mapped;
  return mapped;
}

sender_options quick_sender(std::uint64_t bucket_bytes) {
  sender_options options;
  options.bucket_bytes(bucket_bytes).decide_limit(patient(milliseconds(5000)));
  options.silence_limit(patient(milliseconds(5000))).commit_limit(patient(milliseconds(5000)));
  return options;
}

receiver_options quick_receiver(std::string name) {
  receiver_options options;
  options.name(std::move(name)).connect_limit(patient(milliseconds(5000)));
  options.silence_limit(patient(milliseconds(5000)));
  return options;
}

line::line(any_io_executor executor, setting const& how, sender_options options, receiver_options server)
    : how_(how), executor_(std::move(executor)) {
  options.slots(how_.slots);
  if (how_.how.digests) options.digests(digest_choice::tensors);
  if (how_.how.choice != route_choice::automatic) options.use_route(how_.how.choice);
  auto devices = how_.how.devices ? how_.how.devices : memory::system_backends();
  sender_.emplace(detail::make_sender(executor_, path(), std::move(options), std::move(devices)));
  for (auto const& block : how_.how.from->shared()) sender_->share(block);
  for (std::size_t i = 0; i < how_.how.into.size(); ++i) {
    receiver_options mine = server;
    if (how_.how.into.size() > 1) mine.name(server.name() + "-" + std::to_string(i));
    add_receiver(std::move(mine), how_.how.into[i]);
  }
}

receiver& line::add_receiver(receiver_options options, lane const& where) {
  if (where.memory) options.where(where.memory->where());
  auto devices = where.devices ? where.devices : memory::system_backends();
  receivers_.push_back(detail::make_receiver(executor_, std::move(options), std::move(devices)));
  return receivers_.back();
}

awaitable<void> line::connect() {
  for (; connected_ < receivers_.size(); ++connected_) co_await receivers_[connected_].connect(path());
  co_await sender_->wait_for_receivers(connected_, patient(milliseconds(5000)));
}

awaitable<void> line::close() {
  for (auto& each : receivers_) co_await each.close();
  co_await sender_->close();
  if (auto left = directory_.entries(); !left.empty())
    throw std::runtime_error("close() left " + left.front() + " in the socket's directory");
}

awaitable<update> announced(receiver& from) {
  auto next = co_await from.next_update();
  if (!next) throw std::runtime_error("the sender closed where an update was expected");
  co_return std::move(*next);
}

awaitable<load_report> load_next(receiver& from, destinations& into) {
  auto next = co_await announced(from);
  load_report report = co_await next.load_into(into);
  co_return report;
}

assembly::assembly(update const& from) {
  for (auto const& info : from.tensors()) {
    image one{info.name, info.type, info.dims, {}};
    one.bytes.resize(byte_size(info.type, info.dims).value());
    tensors_.push_back(std::move(one));
  }
  filled_.resize(tensors_.size());
}

void assembly::add(bucket const& next, memory_kind& memory) {
  if (next.number() != buckets_++) throw std::runtime_error("buckets came out of order");
  // What lies on a device is fetched at once: thousands of small copies take minutes.
  std::byte const *first = nullptr, *last = nullptr;
  for (auto const& piece : next.pieces()) {
    if (!piece.where.is_cuda() || piece.bytes == 0) continue;
    if (!first || piece.data < first) first = piece.data;
    last = std::max(last, piece.data + piece.bytes);
  }
  std::vector<std::byte> fetched(static_cast<std::size_t>(last - first));
  if (!fetched.empty()) memory.read(fetched, first);
  for (auto const& piece : next.pieces()) {
    if (piece.tensor >= tensors_.size() || piece.tensor < last_tensor_)
      throw std::runtime_error("pieces came out of order");
    last_tensor_ = piece.tensor;
    auto& bytes = tensors_[piece.tensor].bytes;
    if (piece.tensor_offset != filled_[piece.tensor] || piece.bytes > bytes.size() - piece.tensor_offset)
      throw std::runtime_error("the pieces of " + tensors_[piece.tensor].name + " don't follow each other");
    if (reinterpret_cast<std::uintptr_t>(piece.data) % 256 != 0)
      throw std::runtime_error("a piece of " + tensors_[piece.tensor].name + " is not aligned");
    std::span const to(bytes.data() + piece.tensor_offset, piece.bytes);
    if (!to.empty()) {
      auto const* const from = piece.where.is_cuda() ? fetched.data() + (piece.data - first) : piece.data;
      std::memcpy(to.data(), from, to.size());
    }
    filled_[piece.tensor] += piece.bytes;
  }
}

std::vector<image> assembly::finish() {
  for (std::size_t i = 0; i < tensors_.size(); ++i)
    if (filled_[i] != tensors_[i].bytes.size())
      throw std::runtime_error(tensors_[i].name + " came incomplete");
  return std::move(tensors_);
}

awaitable<std::vector<image>> take_next(receiver& from, memory_kind& memory) {
  auto next = co_await announced(from);
  assembly parts(next);
  while (auto taken = co_await next.next_bucket()) {
    parts.add(*taken, memory);
    taken->release();
  }
  auto tensors = parts.finish();
  co_await next.commit();
  co_return tensors;
}

namespace {

std::string told(route way, std::uint64_t copied, std::string const& reason) {
  return std::string(name(way)) + " " + std::to_string(copied) + " " + reason + "; ";
}

std::string joined(std::multiset<std::string> const& all) {
  std::string text;
  for (auto const& each : all) text += each;
  return text;
}

} // namespace

awaitable<send_report> deliver(line& over, std::uint64_t version, std::vector<tensor_view> tensors,
                               std::vector<destinations>& into) {
  std::vector<task<load_report>> loads;
  for (std::size_t i = 0; i < into.size(); ++i)
    loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
  auto sent = co_await try_to(over.sender().send_weights(version, tensors));
  if (!sent.ok()) // who was not reached waits still
    for (auto& load : loads) load.cancel();
  std::string failed;
  std::multiset<std::string> here, there; // of each receiver, as the two sides report it
  for (auto& load : loads) {
    auto const loaded = co_await load.join();
    if (!loaded.ok())
      failed = "a receiver failed: " + loaded.said();
    else if (loaded.value->version != version)
      failed = "a receiver loaded another version";
    else
      here.insert(told(loaded.value->way, loaded.value->copied, loaded.value->route_reason));
  }
  if (!sent.ok()) throw transfer_error(sent.error, "the send failed: " + sent.said());
  if (!failed.empty()) throw std::runtime_error(failed);
  for (auto const& each : sent.value->receivers)
    if (each.what == outcome::committed) there.insert(told(each.way, each.copied, each.route_reason));
  // Others may have committed as well, and said what they liked.
  if (!std::includes(there.begin(), there.end(), here.begin(), here.end()))
    throw std::runtime_error("the sides report other routes or bytes: " + joined(here) + "not " +
                             joined(there));
  co_return std::move(*sent.value);
}

std::string outcomes(send_report const& report) {
  std::string text;
  for (auto const& each : report.receivers) {
    if (!text.empty()) text += " ";
    text += name(each.what);
  }
  return text;
}

receiver_report const& of(send_report const& report, std::string_view name) {
  for (auto const& each : report.receivers)
    if (each.name.starts_with(name)) return each;
  throw std::out_of_range("no receiver " + std::string(name) + " in the report");
}

} // namespace ropeway::testing
