#include "cli/findings.hpp"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "base/unique_fd.hpp"
#include "cli/quantity.hpp"
#include "memory/host/available.hpp"
#include "wire/address.hpp"

namespace ropeway::cli {
namespace {

using level = finding::level;
constexpr std::uint64_t default_ring = std::uint64_t(128) << 20;

std::string reason(int error) { return std::system_category().message(error); }

/// "6.1.0-18-amd64": 6, 1. Zeros for what is no such thing.
std::pair<int, int> version_of(std::string_view kernel) {
  std::string const text(kernel);
  char* end = nullptr;
  auto const major = static_cast<int>(std::strtol(text.c_str(), &end, 10));
  auto const minor = *end == '.' ? static_cast<int>(std::strtol(end + 1, nullptr, 10)) : 0;
  return {major, minor};
}

std::uint64_t limit_of(__rlimit_resource which) {
  rlimit limit{};
  ::getrlimit(which, &limit);
  return limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
}

int try_io_uring() {
  io_uring_params parameters{};
  unique_fd const ring(static_cast<int>(::syscall(SYS_io_uring_setup, 2, &parameters)));
  return ring ? 0 : errno;
}

int try_memfd() {
  unique_fd const memory(::memfd_create("ropeway-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory) return errno;
  if (::ftruncate(memory.get(), 4096) != 0) return errno;
  return ::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0 ? 0 : errno;
}

int try_peer_pidfd() {
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return errno;
  unique_fd const one(ends[0]), other(ends[1]);
  int fd = -1;
  socklen_t size = sizeof fd;
  if (::getsockopt(one.get(), SOL_SOCKET, SO_PEERPIDFD, &fd, &size) != 0) return errno;
  unique_fd const peer(fd);
  return 0;
}

int try_pidfd_open() {
  unique_fd const self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  return self ? 0 : errno;
}

std::optional<int> setting(char const* path) {
  std::ifstream in(path);
  int value = 0;
  if (in >> value) return value;
  return std::nullopt;
}

std::vector<std::string> container_signs() {
  std::vector<std::string> signs;
  for (char const* file : {"/.dockerenv", "/run/.containerenv"})
    if (std::filesystem::exists(file)) signs.emplace_back(file);
  for (char const* variable : {"container", "KUBERNETES_SERVICE_HOST"})
    if (std::getenv(variable) != nullptr) signs.emplace_back("$").append(variable);
  return signs;
}

std::optional<std::uint64_t> dev_shm() {
  struct statvfs of {};
  if (::statvfs("/dev/shm", &of) != 0) return std::nullopt;
  return std::uint64_t(of.f_bavail) * of.f_frsize;
}

bool somebody_listens(std::string const& path) {
  unique_fd const socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1); // its length was checked
  return ::connect(socket.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address) == 0 ||
         errno == EAGAIN;
}

} // namespace

std::string_view name(finding::level how) noexcept {
  switch (how) {
  case level::good: return "good";
  case level::hint: return "hint";
  case level::bad: return "bad";
  }
  return "unknown";
}

finding about_descriptors(std::uint64_t limit) {
  finding one{level::good, "descriptors", std::to_string(limit) + " at once", {}};
  if (limit == UINT64_MAX) one.said = "no limit";
  if (limit < 256) {
    one.how = level::hint;
    one.advice = "a sender needs three for each receiver and a few more: raise RLIMIT_NOFILE (ulimit -n)";
  }
  return one;
}

finding about_memory(std::uint64_t available) {
  finding one{level::good, "host memory", size_text(available) + " available", {}};
  if (available == UINT64_MAX) one.said = "the system does not say how much is available";
  if (available < default_ring) {
    one.how = level::hint;
    one.advice = "the default ring takes " + size_text(default_ring) +
                 ", once for all receivers: use a smaller bucket, or raise this control group's limit";
  }
  return one;
}

finding about_locked_memory(std::uint64_t limit, std::string_view kernel) {
  finding one{level::good,
              "locked memory",
              limit == UINT64_MAX ? "no limit" : size_text(limit) + " (RLIMIT_MEMLOCK)",
              {}};
  // Since 5.12 io_uring is accounted for elsewhere.
  if (version_of(kernel) < std::pair(5, 12) && limit < (std::uint64_t(1) << 20)) {
    one.how = level::hint;
    one.advice =
        "on this kernel io_uring counts against it; checkpoints are read with pread threads when it does "
        "not suffice: raise it (ulimit -l)";
  }
  return one;
}

finding about_io_uring(bool built, int error, std::optional<int> disabled) {
  finding one{level::good, "io_uring", "allowed", {}};
  if (built && error == 0) return one;
  one.how = level::hint;
  if (!built) {
    one.said = "this build has none; checkpoints are read with pread threads, which works";
    one.advice = "install liburing 2.3 or newer (Debian: liburing-dev), and build ropeway again";
    return one;
  }
  one.said = "refused (" + reason(error) + "); checkpoints are read with pread threads, which works";
  if (error == ENOSYS)
    one.advice = "this kernel has no io_uring, or a container's seccomp profile hides it";
  else if (disabled.value_or(0) != 0)
    one.advice = "kernel.io_uring_disabled is " + std::to_string(*disabled) + ": set it to 0, if you may";
  else
    one.advice = "a container's seccomp profile refuses it (Docker's does by default): allow io_uring_setup, "
                 "io_uring_enter and io_uring_register";
  return one;
}

finding about_memfd(int error) {
  if (error == 0) return {level::good, "shared memory", "memfd with seals works", {}};
  return {
      level::bad, "shared memory", "memfd_create or its seals are refused: " + reason(error),
      "rings and manifests are made of it: allow memfd_create and fcntl(F_ADD_SEALS) in the seccomp profile"};
}

finding about_peer_watch(int error, int pidfd_open_error) {
  finding one{level::good, "dead peers", "noticed at once, also if their children live on", {}};
  if (error == 0) return one;
  if (pidfd_open_error == 0) {
    one.said = "noticed at once, also if their children live on, where both are in one pid namespace";
    return one;
  }
  one.how = level::hint;
  one.said = "noticed when their socket closes: " + reason(pidfd_open_error);
  one.advice = "a child that a trainer forked keeps its socket open; then the silence limit is what notices. "
               "Linux 5.3 has pidfd_open, 6.5 SO_PEERPIDFD; a seccomp profile may refuse them";
  return one;
}

finding about_container(std::vector<std::string> const& signs) {
  finding one{level::good, "container", "no sign of one", {}};
  if (signs.empty()) return one;
  one.said = "this looks like one (";
  for (auto const& sign : signs) one.said += (sign == signs.front() ? "" : ", ") + sign;
  one.said += ")";
  one.advice =
      "trainer and servers in several containers must share the socket's directory (a bind mount) and run "
      "as one user, or allow each other's";
  return one;
}

finding about_dev_shm(std::optional<std::uint64_t> free) {
  return {level::good,
          "/dev/shm",
          (free ? size_text(*free) + " free" : std::string("not there")) + "; ropeway does not use it",
          {}};
}

finding about_connections(char const* value, bool has_devices) {
  finding one{level::good, "CUDA_DEVICE_MAX_CONNECTIONS", value == nullptr ? "not set" : value, {}};
  if (value != nullptr && std::strcmp(value, "1") == 0 && has_devices) {
    one.how = level::hint;
    one.advice =
        "with one hardware queue a copy that waits for your stream holds back all your other streams as "
        "long: call send_weights when the stream has caught up, or raise it to 8";
  }
  return one;
}

finding about_socket(std::string const& path) {
  finding one{level::bad, "socket", {}, {}};
  try {
    wire::check_path(path);
    auto const directory = std::filesystem::absolute(path).parent_path();
    if (!std::filesystem::exists(directory)) {
      if (::access(directory.parent_path().c_str(), W_OK) == 0)
        return {level::good, "socket", directory.string() + " will be made, for you alone (0700)", {}};
      one.said = directory.string() + " is not there, and can't be made";
      one.advice = "make it, for yourself alone: mkdir -p -m 700 " + directory.string();
      return one;
    }
    wire::prepare_directory(path, wire::trust()); // which is there: only looked at
  } catch (std::exception const& error) {         // in words that say what to do
    one.said = error.what();
    return one;
  }
  one.how = level::good;
  if (!std::filesystem::exists(path))
    one.said = path + " is free";
  else if (somebody_listens(path))
    one.said = path + " has a living sender";
  else
    one.said = path + " is left over from a sender that is gone; the next one replaces it";
  return one;
}

std::vector<finding> look_around(std::string const& socket, bool has_devices, bool has_io_uring) {
  utsname kernel{};
  ::uname(&kernel);
  std::vector<finding> all{
      about_memfd(try_memfd()),
      about_memory(memory::host::available_memory()),
      about_descriptors(limit_of(RLIMIT_NOFILE)),
      about_locked_memory(limit_of(RLIMIT_MEMLOCK), kernel.release),
      about_io_uring(has_io_uring, try_io_uring(), setting("/proc/sys/kernel/io_uring_disabled")),
      about_peer_watch(try_peer_pidfd(), try_pidfd_open()),
      about_container(container_signs()),
      about_dev_shm(dev_shm()),
      about_connections(std::getenv("CUDA_DEVICE_MAX_CONNECTIONS"), has_devices),
  };
  if (!socket.empty()) all.push_back(about_socket(socket));
  return all;
}

} // namespace ropeway::cli
