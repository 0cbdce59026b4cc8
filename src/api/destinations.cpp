#include "ropeway/destinations.hpp"

#include <algorithm>
#include <string>

#include "ropeway/error.hpp"
#include "session/destination_set.hpp"

namespace ropeway {
namespace {

[[noreturn]] void refuse(mutable_tensor_view const& into, std::string const& why) {
  std::string const tensor(into.name());
  throw transfer_error(errc::invalid_argument, "tensor " + tensor + ": " + why).tensor(tensor);
}

plan::destination place_of(mutable_tensor_view const& into) {
  plan::destination place;
  place.tensor = into.name();
  place.into = into;
  return place;
}

} // namespace

destinations::destinations() : set_(std::make_shared<detail::destination_set>()) {}
destinations::destinations(destinations&&) noexcept = default;
destinations& destinations::operator=(destinations&&) noexcept = default;
destinations::~destinations() = default;

destinations& destinations::add(mutable_tensor_view const& into) {
  set_->places.push_back(place_of(into));
  set_->forget_plans();
  return *this;
}

destinations& destinations::add_part(std::span<std::uint64_t const> start, mutable_tensor_view const& into) {
  if (start.size() != into.dims().rank())
    refuse(into, "the start of a part has " + std::to_string(start.size()) + " numbers for " +
                     std::to_string(into.dims().rank()) + " dimensions");
  plan::destination place = place_of(into);
  place.part = plan::whole(into.dims());
  std::copy(start.begin(), start.end(), place.part->start.begin());
  set_->places.push_back(std::move(place));
  set_->forget_plans();
  return *this;
}

destinations& destinations::add_shard(std::size_t dimension, std::uint32_t rank, std::uint32_t ranks,
                                      mutable_tensor_view const& into) {
  if (dimension >= into.dims().rank())
    refuse(into, "can't be split along dimension " + std::to_string(dimension) + " of " +
                     std::to_string(into.dims().rank()));
  if (rank >= ranks)
    refuse(into, "there is no rank " + std::to_string(rank) + " of " + std::to_string(ranks));
  plan::destination place = place_of(into);
  place.part = plan::whole(into.dims());
  std::vector<std::uint64_t> extents(into.dims().extents().begin(), into.dims().extents().end());
  std::uint64_t const own = extents[dimension];
  if (__builtin_mul_overflow(own, std::uint64_t(ranks), &extents[dimension]))
    refuse(into, std::to_string(ranks) + " shards of " + std::to_string(own) + " elements are no tensor");
  place.part->start[dimension] = rank * own;
  place.shape_sent = shape(extents);
  set_->places.push_back(std::move(place));
  set_->forget_plans();
  return *this;
}

destinations& destinations::allow_unsent(bool on) {
  set_->allow_unsent = on;
  set_->forget_plans();
  return *this;
}

destinations& destinations::allow_unplaced(bool on) {
  set_->allow_unplaced = on;
  set_->forget_plans();
  return *this;
}

destinations& destinations::allow_tied(bool on) {
  set_->allow_tied = on;
  set_->forget_plans();
  return *this;
}

std::size_t destinations::size() const noexcept { return set_->places.size(); }
bool destinations::torn() const noexcept { return set_->torn(); }
std::vector<std::string> destinations::torn_tensors() const { return set_->torn_tensors(); }
std::optional<std::uint64_t> destinations::version() const noexcept { return set_->version(); }
weights_status destinations::status() const { return set_->status(); }

} // namespace ropeway
