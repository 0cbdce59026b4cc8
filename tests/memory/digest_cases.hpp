// The part of the conformance suite that is about digests. Part of ropeway; Apache-2.0.
#pragma once
#include "conformance.hpp"

namespace ropeway::testing {

void digests_of_runs(memory_kind& kind);
void digests_of_boxes(memory_kind& kind);
void digests_of_conversions(memory_kind& kind);
void digests_of_groups_add_up(memory_kind& kind);
void digests_keep_their_order(memory_kind& kind);
void digests_that_make_no_sense(memory_kind& kind);

} // namespace ropeway::testing
