// What `ropeway doctor` looks at, one function a question. Each is given what it judges, so that a test can
// ask about machines that are not there. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ropeway::cli {

struct finding {
  enum class level : std::uint8_t {
    good,
    hint, ///< it works, and could do so better
    bad,  ///< ropeway can't do its work here
  };
  level how = level::good;
  std::string about;
  std::string said;
  std::string advice; ///< what to change; empty if nothing
};
std::string_view name(finding::level how) noexcept;

/// `limit`: RLIMIT_NOFILE.
finding about_descriptors(std::uint64_t limit);
/// Against what a ring of the default size takes on each side.
finding about_memory(std::uint64_t available);
/// `limit`: RLIMIT_MEMLOCK. `kernel`: as uname has it, "6.1.0-18-amd64".
finding about_locked_memory(std::uint64_t limit, std::string_view kernel);
/// `built`: whether this build can use it. `error`: what io_uring_setup said, 0 for nothing. `disabled`:
/// kernel.io_uring_disabled, if there is one.
finding about_io_uring(bool built, int error, std::optional<int> disabled);
/// `error`: what memfd_create with sealing said.
finding about_memfd(int error);
/// `error`: what SO_PEERPIDFD said; `pidfd_open_error`: what pidfd_open of the own process said.
finding about_peer_watch(int error, int pidfd_open_error);
/// `signs`: what looks like a container, in words; empty outside.
finding about_container(std::vector<std::string> const& signs);
/// `free`: bytes free on /dev/shm; nothing if there is no such file system.
finding about_dev_shm(std::optional<std::uint64_t> free);
/// `value`: CUDA_DEVICE_MAX_CONNECTIONS, null if it is not set.
finding about_connections(char const* value, bool has_devices);
/// Looks at a socket's path and directory without changing them, and whether somebody listens there.
finding about_socket(std::string const& path);

/// All that this machine can be asked without a trial; `socket` may be empty. `has_io_uring`: this build
/// does.
std::vector<finding> look_around(std::string const& socket, bool has_devices, bool has_io_uring);

} // namespace ropeway::cli
