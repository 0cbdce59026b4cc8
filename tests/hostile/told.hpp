// What a sender's report must say of a receiver that lied. Part of ropeway; Apache-2.0.
#pragma once
#include <doctest/doctest.h>

#include "liar.hpp"
#include "ropeway/report.hpp"

namespace ropeway::testing {

/// Of one that took part in the update, by how far it had come when it lied.
inline void check_told(receiver_report const& its, receiver_lie const& what) {
  using at = receiver_lie::step;
  if (what.at == at::committed) {
    CHECK(its.what == outcome::committed);
    return;
  }
  bool const told_to_commit = what.at == at::copied || what.at == at::committing;
  CHECK(name(its.what) == name(told_to_commit ? outcome::unconfirmed : outcome::dropped));
  CHECK(its.error == make_error_code(told_to_commit ? errc::unconfirmed : what.code));
  CHECK_MESSAGE(its.text.find(what.words) != std::string::npos, its.text);
}

} // namespace ropeway::testing
