// Sees that descriptors and shared mappings are back to where they were. Part of ropeway; Apache-2.0.
#pragma once
#include <doctest/doctest.h>

#include "leftovers.hpp"

namespace ropeway::testing {

/// Declare it first in a scope: what is opened or mapped in the scope must be gone at its end. Around whole
/// tests it is looked at anyway (support/main.cpp).
class leak_check {
 public:
  leak_check() = default;
  leak_check(leak_check const&) = delete;
  leak_check& operator=(leak_check const&) = delete;
  ~leak_check() {
    CHECK(before_.left_behind() == "");
    CHECK(before_.lost() == "");
  }

 private:
  leftovers before_;
};

} // namespace ropeway::testing
