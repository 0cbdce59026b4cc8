// What the processes of the benchmark share. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/host_window.hpp"
#include "cli/weights.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::bench {

struct plan {
  bool staged = false; ///< through device memory, else through host memory
  device where;
  std::vector<device> receivers; ///< one process each
  bool sharded = false;          ///< they are a group, of which each takes its part of every matrix
  std::string model;             ///< a name that shapes() knows, or a checkpoint
  std::uint64_t layers = 0;      ///< of the model, to make it smaller on a small machine; 0: all
  std::uint64_t bucket_bytes = 0;
  std::uint32_t slots = 2;
  std::uint64_t warm_up = 0, repeats = 0;
  bool check_each = true; ///< new data for each repeat, all compared; else for the last one only
  std::string command;    ///< as it was given
  // A receiver's process:
  std::uint32_t rank = 0;
  std::string socket;
  int control = -1; ///< where it says how it went with a version
};

/// The tensors of `plan::model`. Throws `errc::invalid_argument` for a name that is neither known nor a file.
std::vector<tensor_info> shapes(plan const& of);
/// Names that shapes() knows, for --help.
std::string known_models();

/// The dimension along which ranks share a tensor; nothing for one that each takes whole.
std::optional<std::size_t> shared_dimension(tensor_info const& tensor, std::size_t ranks);
/// What a receiver holds: all of it, or its shards.
std::vector<tensor_info> held_shapes(plan const& of);

/// Random bytes that depend on version and tensor alone, so that all sides can make them.
void fill(cli::weights const& into, cli::host_window& window, std::uint64_t version);
/// Throws unless all bytes that this receiver holds are as `fill` makes them.
void check(plan const& of, cli::weights const& held, cli::host_window& window, std::uint64_t version);
/// Which data version number `number` (1 is the first) carries.
inline std::uint64_t data_of(plan const& of, std::uint64_t number) {
  return of.check_each || number == of.warm_up + of.repeats ? number : 0;
}

/// What a receiver says of a version that it has committed and compared.
struct receiver_words {
  double load_s = 0; ///< from its acceptance to its commit
  double cpu_s = 0;  ///< of all its threads since the last commit, comparing left out
};
/// CPU time of this process so far.
double cpu_seconds();

/// The receiver's process: loads every version, compares, and writes its words to `control` each time.
void receive(plan const& of);
/// The sender's process: times sends and baseline in turn, and prints the table and the line of JSON.
void measure(plan const& of);

} // namespace ropeway::bench
