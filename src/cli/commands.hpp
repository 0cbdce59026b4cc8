// What the program can do, as functions of checked arguments. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "ropeway/report.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::cli {

struct common_arguments {
  std::string socket;
  device where;
  route_choice route = route_choice::automatic;
  bool json = false;
  bool quiet = false;
  bool with_digest = true;
  bool check = false;                         ///< updates carry digests, and are compared before a commit
  std::optional<std::filesystem::path> trace; ///< a timeline is added to this file
};

struct send_arguments : common_arguments {
  std::filesystem::path checkpoint;
  std::uint64_t versions = 1;
  std::uint64_t bucket_bytes = std::uint64_t(64) << 20;
  std::uint32_t slots = 2;
  std::uint32_t receivers = 1;
  std::chrono::milliseconds wait = std::chrono::seconds(60);
  bool hold = false; ///< the last version, until a signal, for receivers that come later
};

struct receive_arguments : common_arguments {
  std::optional<std::filesystem::path> out;
  std::optional<std::uint64_t> versions;
  std::string name = "receive";
  std::chrono::milliseconds connect_limit = std::chrono::seconds(10);
};

struct inspect_arguments {
  std::filesystem::path path;
  bool json = false;
};

struct watch_arguments {
  std::string socket;
  std::chrono::milliseconds interval = std::chrono::seconds(1);
  std::chrono::milliseconds connect_limit = std::chrono::seconds(10);
  bool once = false;
  bool json = false;
};

struct verify_arguments {
  std::vector<std::filesystem::path> checkpoints;
  std::string socket; ///< empty: no sender
  std::chrono::milliseconds connect_limit = std::chrono::seconds(10);
  bool json = false;
};

struct doctor_arguments {
  std::string version;      ///< of this program
  bool has_io_uring = true; ///< it was built with it
  std::string socket;       ///< to look at as well; may be empty
  bool with_trials = true;
  bool json = false;
};

struct bench_arguments {
  std::uint64_t bytes = std::uint64_t(1) << 30;
  std::uint64_t bucket_bytes = std::uint64_t(64) << 20;
  std::uint32_t slots = 2;
  std::uint32_t repeats = 5;
  bool json = false;
};

/// Each gives the exit status (exit_code.hpp), having said everything that there is to say.
int send(send_arguments const& arguments);
int receive(receive_arguments const& arguments);
int inspect(inspect_arguments const& arguments);
/// Shows a sender and its receivers, again and again.
int watch(watch_arguments const& arguments);
/// Compares checkpoints, a sender and its receivers by their digests.
int verify(verify_arguments const& arguments);
/// Looks for what keeps weights from going fast, or at all, and says what to change.
int doctor(doctor_arguments const& arguments);
/// Times every route that works between each two places that this machine has for weights.
int bench(bench_arguments const& arguments);

} // namespace ropeway::cli
