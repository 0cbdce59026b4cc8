#include "session/destination_set.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace ropeway::detail {
namespace {
constexpr std::size_t plans_kept = 4;
constexpr auto nobody = static_cast<std::uint32_t>(-1);

/// Whether two places are one: whole tensors in the same memory.
bool alike(plan::destination const& a, plan::destination const& b) {
  return !a.part && !b.part && a.into.data() == b.into.data() && a.into.where() == b.into.where() &&
         a.into.type() == b.into.type() && a.into.dims() == b.into.dims() &&
         a.into.strides() == b.into.strides();
}
} // namespace

std::vector<std::uint32_t> const& destination_set::tied() {
  if (tied_.size() == places.size()) return tied_;
  tied_.resize(places.size());
  std::iota(tied_.begin(), tied_.end(), 0U);
  if (!allow_tied) return tied_;
  auto by_memory = tied_;
  std::ranges::sort(by_memory, {}, [&](std::uint32_t i) { return std::pair(places[i].into.data(), i); });
  for (std::size_t at = 0, begin = 0; at < by_memory.size(); ++at) {
    auto const& one = places[by_memory[at]];
    if (one.into.data() != places[by_memory[begin]].into.data()) begin = at;
    for (auto other = begin; other < at && one.into.data() != nullptr; ++other)
      if (alike(one, places[by_memory[other]])) {
        tied_[by_memory[at]] = by_memory[other];
        break;
      }
  }
  return tied_;
}

destination_plan& destination_set::plan_for(plan::manifest const& manifest) {
  auto const found = std::find_if(plans_.begin(), plans_.end(),
                                  [&](known const& one) { return one.layout == manifest.layout(); });
  if (found != plans_.end()) {
    std::rotate(found, found + 1, plans_.end());
    return *plans_.back().plan;
  }
  auto made = std::make_unique<destination_plan>();
  auto const& first = tied();
  std::vector<std::uint32_t> taker(places.size(), nobody); // of those that are tied to this one
  for (std::uint32_t i = 0; i < places.size(); ++i)
    if (taker[first[i]] == nobody && manifest.find(places[i].tensor)) taker[first[i]] = i;
  std::vector<plan::destination> taking;
  for (std::uint32_t i = 0; i < places.size(); ++i) {
    auto const by = taker[first[i]];
    if (by == nobody && allow_unsent) continue;
    made->covered.push_back(i);
    bool const tied_to_another = by != nobody && by != i;
    if (tied_to_another && !manifest.find(places[i].tensor)) continue;
    taking.push_back(places[i]);
    taking.back().tied = tied_to_another;
  }
  made->scatter = plan::scatter(manifest, taking, allow_unplaced);
  if (plans_.size() == plans_kept) plans_.erase(plans_.begin());
  plans_.push_back({manifest.layout(), std::move(made)});
  return *plans_.back().plan;
}

bool destination_set::start_load() {
  std::scoped_lock lock(mutex_);
  torn_.resize(places.size());
  if (loading_) return false;
  return loading_ = true;
}

void destination_set::end_load() {
  std::scoped_lock lock(mutex_);
  loading_ = false;
  if (std::exchange(wrote_, false)) since_ = std::chrono::system_clock::now(); // it was not committed
}

void destination_set::begin_writing(arrival const& of) {
  arriving_ = of;
  wrote_ = true;
  since_ = std::chrono::system_clock::now();
}

void destination_set::end_writing() {
  version_ = arriving_.version;
  held_ = arriving_;
  wrote_ = false;
  since_ = std::chrono::system_clock::now();
}

void destination_set::writing(destination_plan const& part, arrival const& of) {
  std::scoped_lock lock(mutex_);
  for (auto const i : part.covered) torn_[i] = true;
  begin_writing(of);
}

void destination_set::writing_all(arrival const& of) {
  std::scoped_lock lock(mutex_);
  torn_.assign(torn_.size(), true);
  begin_writing(of);
}

void destination_set::committed(destination_plan const& part) {
  std::scoped_lock lock(mutex_);
  for (auto const i : part.covered) torn_[i] = false;
  end_writing();
}

void destination_set::committed_all() {
  std::scoped_lock lock(mutex_);
  torn_.assign(torn_.size(), false);
  end_writing();
}

bool destination_set::torn() const {
  std::scoped_lock lock(mutex_);
  return any_torn();
}

bool destination_set::any_torn() const { return std::find(torn_.begin(), torn_.end(), true) != torn_.end(); }

weights_status destination_set::status() const {
  std::scoped_lock lock(mutex_);
  weights_status now;
  now.version = version_;
  now.since = since_;
  bool const unfinished = wrote_ || any_torn();
  if (unfinished) {
    now.what = wrote_ ? holding::loading : holding::torn;
    now.arriving = arriving_.version;
    now.from = arriving_.from;
  } else if (version_) {
    now.what = holding::committed;
    now.from = held_.from;
  }
  return now;
}

std::vector<std::string> destination_set::torn_tensors() const {
  std::scoped_lock lock(mutex_);
  std::vector<std::string> names;
  for (std::size_t i = 0; i < torn_.size(); ++i)
    if (torn_[i]) names.push_back(places[i].tensor);
  return names;
}

std::optional<std::uint64_t> destination_set::version() const {
  std::scoped_lock lock(mutex_);
  return version_;
}

} // namespace ropeway::detail
