#include "session/shadow_set.hpp"

#include <algorithm>
#include <utility>

#include "ropeway/error.hpp"

namespace ropeway::detail {
namespace {

[[noreturn]] void refuse(std::string const& why) {
  throw transfer_error(errc::invalid_argument, "shadow destinations: " + why);
}

bool same_place(plan::destination const& a, plan::destination const& b) {
  return a.tensor == b.tensor && a.part == b.part && a.shape_sent == b.shape_sent &&
         a.into.type() == b.into.type() && a.into.dims() == b.into.dims();
}

void check(destination_set& first, destination_set& second) {
  if (first.places.size() != second.places.size())
    refuse("the first set has " + std::to_string(first.places.size()) + " places, the second " +
           std::to_string(second.places.size()));
  if (first.allow_unsent != second.allow_unsent || first.allow_unplaced != second.allow_unplaced ||
      first.allow_tied != second.allow_tied)
    refuse("both sets must allow the same");
  if (first.tied() != second.tied()) refuse("what is tied in one set is not in the other");
  for (std::size_t i = 0; i < first.places.size(); ++i) {
    auto const &a = first.places[i], &b = second.places[i];
    if (!same_place(a, b))
      refuse("place " + std::to_string(i) + " is for " + a.tensor + " in the first set and for " + b.tensor +
             " in the second, or for another part, type or shape of it");
    if (a.into.data() == b.into.data() && a.into.data() != nullptr &&
        byte_size(a.into.type(), a.into.dims()).value_or(1) != 0)
      refuse("both sets have the same memory for " + a.tensor);
  }
}

} // namespace

shadow_set::shadow_set(std::shared_ptr<destination_set> first, std::shared_ptr<destination_set> second,
                       shadow_form form)
    : sets_{std::move(first), std::move(second)}, form_(form) {
  if (!sets_[0] || !sets_[1] || sets_[0] == sets_[1]) refuse("two sets are needed");
  check(*sets_[0], *sets_[1]);
}

// ---- readers ----

std::optional<shadow_set::lease> shadow_set::take_lease() {
  std::scoped_lock lock(mutex_);
  if (!live_ || closed_) return {};
  auto const now = sets_[*live_]->status();
  if (!now.whole()) return {}; // the copy at a commit has failed
  ++leases_[*live_];
  return lease{*live_, *now.version};
}

void shadow_set::end_lease(std::size_t set) noexcept {
  std::function<void()> then;
  {
    std::scoped_lock lock(mutex_);
    if (--leases_[set] == 0 && awaited_ == set) then = std::exchange(when_free_, nullptr);
  }
  try {
    if (then) then();
  } catch (...) {
    // No memory to tell the load; it is put off when its limit is over.
  }
}

weights_status shadow_set::status() const {
  std::scoped_lock lock(mutex_);
  if (!live_) return sets_[form_ == shadow_form::swap ? 0 : 1]->status();
  auto now = sets_[*live_]->status();
  if (now.whole())
    if (auto const other = sets_[1 - *live_]->status(); other.what == holding::loading)
      now.arriving = other.arriving;
  return now;
}

std::optional<std::uint64_t> shadow_set::version() const {
  std::scoped_lock lock(mutex_);
  return live_ ? sets_[*live_]->status().version : std::nullopt;
}

// ---- the load ----

std::size_t shadow_set::target() const noexcept {
  if (form_ == shadow_form::copy_at_commit) return 1;
  return live_ ? 1 - *live_ : 0;
}

std::shared_ptr<destination_set> shadow_set::start_load() {
  std::scoped_lock lock(mutex_);
  auto const& set = sets_[target()];
  if (!set->start_load()) return {};
  loading_ = target();
  return set;
}

bool shadow_set::free(std::size_t set, std::function<void()> then) {
  if (leases_[set] == 0) return true;
  awaited_ = set;
  when_free_ = std::move(then);
  return false;
}

bool shadow_set::free_to_load(std::function<void()> then) {
  std::scoped_lock lock(mutex_);
  return free(loading_, std::move(then));
}

bool shadow_set::free_to_commit(std::function<void()> then) {
  std::scoped_lock lock(mutex_);
  closed_ = true;
  return free(0, std::move(then));
}

void shadow_set::forget_waiting() {
  std::function<void()> dropped; // may own what owns us
  std::scoped_lock lock(mutex_);
  dropped.swap(when_free_);
}

void shadow_set::writing(destination_plan const& part, arrival const& of, std::vector<memory::copy_op>& out) {
  std::scoped_lock lock(mutex_);
  auto& into = *sets_[loading_];
  if (!live_ || form_ == shadow_form::copy_at_commit) return into.writing(part, of);
  into.writing_all(of);
  auto const& from = *sets_[*live_];
  auto const& tied = into.tied();
  auto covered = part.covered.begin();
  for (std::uint32_t i = 0; i < into.places.size(); ++i) {
    if (covered != part.covered.end() && *covered == i)
      ++covered;
    else if (tied[i] == i)
      plan::ops_between(from.places[i].into, into.places[i].into, out);
  }
}

void shadow_set::copying(destination_plan const& part, arrival const& of, std::vector<memory::copy_op>& out) {
  std::scoped_lock lock(mutex_);
  (void)sets_[0]->start_load(); // a load has the second one, so nobody else can have this one
  sets_[0]->writing(part, of);
  auto const& tied = sets_[1]->tied();
  for (auto const i : part.covered)
    if (tied[i] == i) plan::ops_between(sets_[1]->places[i].into, sets_[0]->places[i].into, out);
}

void shadow_set::committed(destination_plan const& part) {
  std::scoped_lock lock(mutex_);
  if (form_ == shadow_form::copy_at_commit) {
    sets_[1]->committed(part);
    sets_[0]->committed(part);
    live_ = 0;
    return;
  }
  if (live_)
    sets_[loading_]->committed_all();
  else
    sets_[loading_]->committed(part);
  // Torn: an update before this one failed, and this one covers less. Nothing is live yet, so nothing was
  // lost.
  if (!sets_[loading_]->torn()) live_ = loading_;
}

void shadow_set::end_load() {
  std::scoped_lock lock(mutex_);
  if (form_ == shadow_form::copy_at_commit) sets_[0]->end_load();
  sets_[loading_]->end_load();
  closed_ = false;
}

} // namespace ropeway::detail
