// What the two processes of the benchmark share. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cli/host_window.hpp"
#include "cli/weights.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::bench {

struct plan {
  bool staged = false; ///< through device memory, else through host memory
  device where, receiver_where;
  std::uint64_t bucket_bytes = 0;
  std::uint32_t slots = 2;
  std::uint64_t warm_up = 0, repeats = 0;
  std::uint64_t layers = 0; ///< of the model, to make it smaller on a small machine
  bool check_each = true;   ///< new data for each repeat, all compared; else for the last one only
  std::string socket;
  int control = -1;    ///< receiver: where it says that it is done with a version
  std::string command; ///< as it was given
};

/// Host: a mixture of experts, 386 tensors a layer, many of 512 KiB. Staged: Qwen3-8B.
std::vector<tensor_info> shapes(plan const& of);

/// Random bytes that depend on version and tensor alone, so that both sides can make them.
void fill(cli::weights const& into, cli::host_window& window, std::uint64_t version);
/// Throws unless all bytes are as `fill` makes them.
void check(cli::weights const& held, cli::host_window& window, std::uint64_t version);
/// Which data version number `number` (1 is the first) carries.
inline std::uint64_t data_of(plan const& of, std::uint64_t number) {
  return of.check_each || number == of.warm_up + of.repeats ? number : 0;
}

/// The receiver's process: loads every version, compares, and writes one byte to `control` each time.
void receive(plan const& of);
/// The sender's process: times sends and baseline in turn, and prints the table and the line of JSON.
void measure(plan const& of);

} // namespace ropeway::bench
