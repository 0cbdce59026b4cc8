// The machines from inside. Their states are compared whole, so this sees what nobody else does.
// Part of ropeway; Apache-2.0.
#pragma once
#include "protocol/receiver/state.hpp"
#include "protocol/sender/state.hpp"

namespace ropeway::protocol {

struct whole_state {
  using sender = sender_machine::impl;
  using receiver = receiver_machine::impl;
  static sender const& of(sender_machine const& m) { return *m.impl_; }
  static receiver const& of(receiver_machine const& m) { return *m.impl_; }
};

} // namespace ropeway::protocol
