#include "session/destination_set.hpp"

#include <algorithm>
#include <utility>

namespace ropeway::detail {
namespace {
constexpr std::size_t plans_kept = 4;
}

destination_plan& destination_set::plan_for(plan::manifest const& manifest) {
  auto const found = std::find_if(plans_.begin(), plans_.end(),
                                  [&](known const& one) { return one.layout == manifest.layout(); });
  if (found != plans_.end()) {
    std::rotate(found, found + 1, plans_.end());
    return *plans_.back().plan;
  }
  auto made = std::make_unique<destination_plan>();
  std::vector<plan::destination> taking;
  for (std::uint32_t i = 0; i < places.size(); ++i) {
    if (allow_unsent && !manifest.find(places[i].tensor)) continue;
    taking.push_back(places[i]);
    made->covered.push_back(i);
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
