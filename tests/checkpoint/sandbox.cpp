#include "sandbox.hpp"

#include <cstddef>
#include <cstdio>
#include <exception>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdexcept>
#include <string>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace ropeway::test {

int in_child(std::function<int()> body) {
  std::fflush(nullptr);
  pid_t const child = ::fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    int result = 999;
    try {
      result = body();
    } catch (std::exception const& error) {
      std::fprintf(stderr, "in the child: %s\n", error.what());
      result = 99;
    }
    ::_exit(result);
  }
  int status = 0;
  if (::waitpid(child, &status, 0) != child) throw std::runtime_error("waitpid failed");
  return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

void refuse_call(int number, int error, unsigned argument, std::uint32_t mask) {
  auto const field = [](std::size_t offset) {
    return sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, static_cast<std::uint32_t>(offset)};
  };
  std::vector<sock_filter> code;
  code.push_back(field(offsetof(seccomp_data, nr)));
  code.push_back({BPF_JMP | BPF_JEQ | BPF_K, 0, 4, static_cast<std::uint32_t>(number)});
  code.push_back(
      field(offsetof(seccomp_data, args) + 8 * argument)); // the low half, on a little-endian machine
  code.push_back({BPF_ALU | BPF_AND | BPF_K, 0, 0, mask});
  code.push_back({BPF_JMP | BPF_JEQ | BPF_K, 0, 1, mask});
  code.push_back({BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(error)});
  code.push_back({BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW});
  sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    throw std::runtime_error("seccomp is not available");
}

bool drop_capability(unsigned capability) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3]{};
  if (::syscall(SYS_capget, &header, sets) != 0) return false;
  auto& set = sets[capability / 32];
  auto const bit = std::uint32_t{1} << capability % 32;
  set.effective &= ~bit;
  set.permitted &= ~bit;
  set.inheritable &= ~bit;
  return ::syscall(SYS_capset, &header, sets) == 0;
}

bool mount_small(char const* directory, unsigned bytes) {
  if (::unshare(CLONE_NEWNS) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
  return ::mount("none", directory, "tmpfs", 0, ("size=" + std::to_string(bytes)).c_str()) == 0;
}

} // namespace ropeway::test
