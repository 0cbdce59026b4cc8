#include "ropeway/shadow.hpp"

#include <utility>

#include "session/shadow_set.hpp"

namespace ropeway {

weights_lease::weights_lease(weights_lease&& other) noexcept
    : of_(std::exchange(other.of_, nullptr)), set_(other.set_), version_(other.version_) {}

weights_lease& weights_lease::operator=(weights_lease&& other) noexcept {
  if (this == &other) return *this;
  end();
  of_ = std::exchange(other.of_, nullptr);
  set_ = other.set_;
  version_ = other.version_;
  return *this;
}

void weights_lease::end() noexcept {
  if (auto const of = std::exchange(of_, nullptr)) of->end_lease(set_);
}

shadow_destinations::shadow_destinations(destinations first, destinations second, shadow_form form)
    : set_(std::make_shared<detail::shadow_set>(std::move(first.set_), std::move(second.set_), form)) {}
shadow_destinations::shadow_destinations(shadow_destinations&&) noexcept = default;
shadow_destinations& shadow_destinations::operator=(shadow_destinations&&) noexcept = default;
shadow_destinations::~shadow_destinations() = default;

weights_lease shadow_destinations::lease() const {
  weights_lease given;
  if (auto const taken = set_->take_lease()) {
    given.of_ = set_;
    given.set_ = taken->set;
    given.version_ = taken->version;
  }
  return given;
}

weights_status shadow_destinations::status() const { return set_->status(); }
std::optional<std::uint64_t> shadow_destinations::version() const noexcept { return set_->version(); }

} // namespace ropeway
