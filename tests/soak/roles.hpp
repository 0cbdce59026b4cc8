// The processes of a soak: a conductor, which starts the others and says what happens, a sender, and
// receivers. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "ropeway/report.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::soak {

/// The descriptor of the control channel in a process that the conductor started.
inline constexpr int control_fd = 3;
/// Exit status of a process whose device is not there, and of a soak that can't run for that reason.
inline constexpr int skipped = 77;

/// What every process of a soak knows from its command line.
struct role {
  std::uint64_t seed = 0;
  bool even = false; ///< layouts of moderate sizes only
  std::string path;  ///< the sender's socket
  std::string name;
  std::string group;
  std::uint32_t group_size = 0;
  device where;
};
/// Which way a receiver lets updates come: any, and in a random soak sometimes one only. By its name.
route_choice route_of(std::uint64_t seed, std::string const& name, bool even);
int lead(role const& as);   ///< the sender's process
int follow(role const& as); ///< a receiver's

enum class mode : std::uint8_t { random, flat, restarts };
enum class victim : std::uint8_t { both, receiver, sender };

struct wishes {
  mode how = mode::random;
  std::uint64_t seed = 0;
  std::uint64_t updates = 0; ///< or rounds; 0: until the time is up
  double minutes = 0;
  victim killed = victim::both;
  std::string sample_file;
  std::uint64_t sample_every = 0; ///< updates; 0: chosen so that the file stays short
  device where;
  std::vector<device> receiver_devices;
  bool verbose = false;
  std::string command; ///< as it was given, for the reader of the output
};
/// Runs it, prints what it did, and returns the exit status.
int conduct(wishes const& of);

} // namespace ropeway::soak
