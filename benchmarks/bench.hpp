// What the processes of the benchmark share. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model_memory.hpp"
#include "ropeway/tensor.hpp"
#include "routes.hpp"

namespace ropeway::bench {

/// What is timed.
enum class study : std::uint8_t {
  steady,  ///< version after version
  shards,  ///< a group of receivers that share every matrix, beside one that takes all
  fan_out, ///< many receivers that take all, beside one
  decode,  ///< a receiver that serves while it is updated
  cold,    ///< from the start of both processes to the first version
};
char const* name(study what);

struct plan {
  study what = study::steady;
  std::vector<way> routes{way::automatic}; ///< one after the other in each repeat
  device where;
  std::vector<device> receivers; ///< one process each
  memory_kind memory = memory_kind::region;
  std::string model;        ///< a name that shapes() knows, or a checkpoint
  std::uint64_t layers = 0; ///< of the model, to make it smaller on a small machine; 0: all
  std::uint64_t bucket_bytes = 0;
  std::uint32_t slots = 2;
  std::uint64_t warm_up = 0, repeats = 0;
  bool check_each = true;          ///< new data for each repeat, all compared; else for the last one only
  bool digest = false;             ///< both sides compute digests, and compare
  bool prepared = false;           ///< tensors are compared with the last layout once, not in each send
  bool limits = true;              ///< measured in turn with the sends
  std::vector<pace> paces{pace()}; ///< of the receivers; more than one for study::decode
  std::uint64_t decode_steps = 1000, decode_reads = 20, decode_bytes = std::uint64_t(64) << 20;
  std::string command; ///< as it was given
  std::string json;    ///< the file that lines are added to; standard output if empty
  // A process that was started by another:
  std::uint32_t rank = 0, ranks = 0; ///< its shard of how many; no shards: 0
  std::string socket;
  int control = -1; ///< where it says how it went with a version
};

/// The tensors of `plan::model`. Throws `errc::invalid_argument` for a name that is neither known nor a file.
std::vector<tensor_info> shapes(plan const& of);
/// Names that shapes() knows, for --help.
std::string known_models();

/// The dimension along which `rank` has its share of a tensor; nothing for one that each takes whole. The
/// last rank takes columns of every matrix; the others what a tensor-parallel layer takes.
std::optional<std::size_t> shared_dimension(tensor_info const& tensor, std::uint32_t rank,
                                            std::uint32_t ranks);
/// What a receiver holds: all of it, or its shards.
std::vector<tensor_info> held_shapes(plan const& of);

/// Random bytes that depend on version and tensor alone, so that all sides can make them.
void fill(model_memory const& into, std::uint64_t version);
/// Throws unless all bytes that this receiver holds are as `fill` makes them.
void check(plan const& of, model_memory const& held, std::uint64_t version);
/// Throws unless they are as in the checkpoint that is the model.
void check_file(plan const& of, model_memory const& held);
/// Which data version number `number` (1 is the first) carries.
inline std::uint64_t data_of(plan const& of, std::uint64_t number) {
  if (of.what == study::decode) return 0; // the trainer is idle but for the sends
  return of.check_each || number == of.warm_up + of.repeats ? number : 0;
}

using clock = std::chrono::steady_clock;
/// On a clock that all processes of this machine share.
inline double now() { return std::chrono::duration<double>(clock::now().time_since_epoch()).count(); }

/// Times of many equal things.
struct step_times {
  std::uint64_t steps = 0;
  double p50_s = 0, p90_s = 0, p99_s = 0, max_s = 0;
};
step_times times_of(std::vector<double> seconds);

/// What a receiver says of a version that it has committed, and compared if that was asked for. Crosses a
/// socket between two processes of this program as it is.
struct receiver_words {
  // Its start.
  double entered = 0, ready = 0, connected = 0;
  // This version.
  double announced = 0, moved = 0, committed = 0; ///< `moved`: the last copies were seen; 0 if not told
  double cpu_s = 0; ///< of all its threads since the last commit, comparing left out
  std::uint64_t held_bytes = 0;
  std::uint64_t read_bytes = 0; ///< of the sender's memory or of the ring
  stage_times stages;
  // Its serving, if it does.
  bool enough = false; ///< it has seen as many steps as it should
  step_times alone, beside;
};
/// CPU time of this process so far.
double cpu_seconds();

/// What a trainer's process says of its start, of `study::cold`.
struct trainer_words {
  double entered = 0, opened = 0, ready = 0, loaded = 0, joined = 0, sent = 0;
  route taken = route::host;
};

/// The receiver's process: loads every version, compares, and writes its words to `control` each time.
void receive(plan const& of, double entered);
/// The trainer's process of a cold start: reads the checkpoint, sends it once, writes its words.
void train_once(plan const& of, double entered);
/// The process that is started by hand: times what is asked for, and prints tables and lines of JSON.
void measure(plan const& of);
void measure_cold(plan const& of);

} // namespace ropeway::bench
