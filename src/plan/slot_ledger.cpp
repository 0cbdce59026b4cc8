#include "plan/slot_ledger.hpp"

#include <algorithm>
#include <stdexcept>

namespace ropeway::plan {
namespace {

/// The driver of a ledger broke its rules; peers can't cause this.
[[noreturn]] void misuse(char const* what) { throw std::logic_error(what); }

} // namespace

slot_ledger::slot_ledger(std::uint32_t slots) : slots_(slots) {}

std::uint32_t slot_ledger::slots() const noexcept { return static_cast<std::uint32_t>(slots_.size()); }

std::optional<std::uint32_t> slot_ledger::start_filling(std::uint64_t seq) {
  std::optional<std::uint32_t> best;
  for (std::uint32_t i = 0; i < slots_.size(); ++i)
    if (is_free(i) && (!best || slots_[i].freed_at < slots_[*best].freed_at)) best = i;
  if (best) {
    slots_[*best].what = entry::state::filling;
    slots_[*best].seq = seq;
  }
  return best;
}

void slot_ledger::filled(std::uint32_t slot) {
  auto& s = slots_.at(slot);
  if (s.what != entry::state::filling) misuse("a slot was filled that nobody was filling");
  s.what = entry::state::filled;
}

void slot_ledger::hold(std::uint32_t slot, reader_id reader) {
  auto& s = slots_.at(slot);
  if (s.what == entry::state::free) misuse("a hold on a free slot");
  if (holds(slot, reader)) misuse("a second hold of one reader on one slot");
  s.readers.push_back(reader);
}

bool slot_ledger::release(std::uint32_t slot, reader_id reader) {
  auto& s = slots_.at(slot);
  auto const found = std::find(s.readers.begin(), s.readers.end(), reader);
  if (found == s.readers.end()) return false;
  s.readers.erase(found);
  if (s.what == entry::state::filled && s.readers.empty()) free(s);
  return true;
}

std::uint32_t slot_ledger::release_all(reader_id reader) {
  std::uint32_t ended = 0;
  for (std::uint32_t i = 0; i < slots_.size(); ++i) ended += release(i, reader);
  return ended;
}

void slot_ledger::give_back(std::uint32_t slot) {
  auto& s = slots_.at(slot);
  if (s.what == entry::state::free) misuse("a free slot was given back");
  if (!s.readers.empty()) misuse("a slot was given back that is still read");
  free(s);
}

bool slot_ledger::is_free(std::uint32_t slot) const { return slots_.at(slot).what == entry::state::free; }

bool slot_ledger::holds(std::uint32_t slot, reader_id reader) const {
  auto const& readers = slots_.at(slot).readers;
  return std::find(readers.begin(), readers.end(), reader) != readers.end();
}

std::uint64_t slot_ledger::seq(std::uint32_t slot) const { return slots_.at(slot).seq; }

std::optional<std::uint32_t> slot_ledger::find(std::uint64_t seq) const {
  for (std::uint32_t i = 0; i < slots_.size(); ++i)
    if (!is_free(i) && slots_[i].seq == seq) return i;
  return {};
}

std::uint32_t slot_ledger::taken() const noexcept {
  auto const used =
      std::count_if(slots_.begin(), slots_.end(), [](auto const& s) { return s.what != entry::state::free; });
  return static_cast<std::uint32_t>(used);
}

void slot_ledger::free(entry& e) {
  e.what = entry::state::free;
  e.freed_at = ++clock_;
}

} // namespace ropeway::plan
