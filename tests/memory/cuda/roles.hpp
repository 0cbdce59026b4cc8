// Parts that a test gives to processes of their own, because they end badly. Part of ropeway; Apache-2.0.
#pragma once
#include <string>

namespace ropeway::testing {

/// Plays it; 0 if all went as it should.
int play(std::string const& role);

} // namespace ropeway::testing
