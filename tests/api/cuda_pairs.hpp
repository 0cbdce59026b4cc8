// The pairs of memories that this machine has GPUs for. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "line.hpp"

namespace ropeway::testing {

/// Memory of one GPU as a framework would allocate it.
std::shared_ptr<memory_kind> cuda_memory(int ordinal);
/// The system's devices, none of which can map another GPU's memory: bytes must go through the host ring.
std::shared_ptr<memory::backends> without_peers();

/// Same GPU, CPU to GPU, GPU to CPU, two GPUs with peer access and without (one GPU alone stands in for the
/// latter), and all of these among the receivers of one sender.
std::vector<pairing> cuda_pairings();
/// What of that this machine can't show, one line each.
std::vector<std::string> missing_pairings();

/// What `--peer=ROLE:PATH:ORDINAL` plays in a process of its own; its exit status.
int play_peer(std::string const& role);
/// Starts this program as such a peer. `visible`: its CUDA_VISIBLE_DEVICES, or empty. Returns its process
/// number.
int start_peer(std::string const& role, std::string const& visible);
/// Waits for it; its exit status, or -1.
int end_of_peer(int process);

/// What both processes send and expect as `version`.
std::vector<tensor_info> peer_layers();

} // namespace ropeway::testing
