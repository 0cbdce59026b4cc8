#include "session/received_digests.hpp"

#include <algorithm>
#include <cstring>

#include "ropeway/error.hpp"

namespace ropeway::session {
namespace {

plan::digest_checks checks_of(plan::manifest const& of, plan::chunk_table const& chunks,
                              std::optional<plan::scatter> const& into) {
  if (into) return plan::digest_checks(of, chunks, *into);
  return plan::digest_checks(of, chunks);
}

/// The manifest says how many digests there are, and the sender how long its table is: before anything is
/// made of that many.
plan::chunk_table const& fitting(plan::chunk_table const& chunks, std::uint64_t table_bytes) {
  std::uint64_t const wanted = std::uint64_t(std::max(1u, chunks.chunks())) * protocol::digest_bytes;
  if (table_bytes != wanted)
    throw transfer_error(errc::protocol_error, "the sender's table of digests has " +
                                                   std::to_string(table_bytes) + " bytes, not the " +
                                                   std::to_string(wanted) + " of its tensors' chunks");
  return chunks;
}

} // namespace

received_digests::received_digests(memory::backends& memory, purpose of, std::uint64_t table_bytes)
    : manifest_(std::move(of.manifest))
    , chunks_(*manifest_)
    , into_(of.into ? std::optional<plan::scatter>(*of.into) : std::nullopt)
    , checks_(checks_of(*manifest_, fitting(chunks_, table_bytes), into_))
    , maps_(of.mapped != nullptr)
    , mapped_(of.mapped)
    , where_(of.where) {
  auto const sums = static_cast<std::uint32_t>(checks_.checks().size());
  auto const make = [&](std::vector<memory::digest_op> ops) -> std::unique_ptr<digest_list> {
    if (ops.empty()) return nullptr;
    return std::make_unique<digest_list>(memory, std::move(ops), sums);
  };
  places_ = make(checks_.of_destinations());
  std::vector<memory::digest_op> ops;
  for (std::uint32_t t = 0; t < of.tensors.size(); ++t)
    if (of.tensors[t]) checks_.of_source(t, *of.tensors[t], ops);
  source_ = make(std::move(ops));
  plan::placement const* const mapped = maps_ ? of.placement.get() : nullptr;
  ops = checks_.of_slots(mapped, device::host());
  needed_.resize(manifest_->buckets().size());
  for (auto const& op : ops) needed_[op.group] = true;
  host_slots_ = make(std::move(ops));
  if (where_.is_cuda()) device_slots_ = make(checks_.of_slots(mapped, where_));
  found_.resize(sums);
  said_.resize(chunks_.chunks());
}

bool received_digests::is_for(std::shared_ptr<detail::mapped_copies const> const& mapped) const noexcept {
  return maps_ ? mapped != nullptr && mapped_.lock() == mapped : mapped == nullptr;
}

digest_list const* received_digests::of_slots(device where) const noexcept {
  return (where.is_cuda() ? device_slots_ : host_slots_).get();
}

std::span<digester::run_of const> received_digests::last_runs(std::optional<device> slots) noexcept {
  runs_ = {}; // a load that was given up has left its own
  std::size_t count = 0;
  if (places_) runs_[count++] = {places_.get(), {}};
  if (source_) runs_[count++] = {source_.get(), {}};
  if (auto const* const list = slots ? of_slots(*slots) : nullptr) {
    memory::digest_run fetch;
    fetch.count = 0;
    fetch.begin = false;
    runs_[count++] = {list, fetch};
  }
  return std::span(runs_).first(count);
}

std::uint64_t received_digests::bytes() const noexcept { return places_ ? places_->bytes() : 0; }

std::uint64_t received_digests::table_bytes() const noexcept {
  return std::max<std::uint64_t>(1, said_.size()) * protocol::digest_bytes;
}

std::optional<received_digests::difference> received_digests::compare(std::span<std::byte const> table) {
  static_assert(sizeof(digest128) == protocol::digest_bytes);
  if (table.size() < said_.size() * sizeof(digest128))
    throw transfer_error(errc::bad_region, "the sender's table of digests is too short");
  // A copy of our own: it must not change between two looks.
  if (!said_.empty()) std::memcpy(said_.data(), table.data(), said_.size() * sizeof(digest128));
  std::fill(found_.begin(), found_.end(), digest128());
  for (auto const& run : runs_)
    if (run.list) run.list->add_to(found_);
  whole_ = chunks_.whole(said_);
  auto const* const wrong = checks_.first_difference(found_, said_);
  if (!wrong) return std::nullopt;
  return difference{manifest_->tensors()[wrong->tensor].name, checks_.words(*wrong)};
}

} // namespace ropeway::session
