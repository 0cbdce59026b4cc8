#include "import_peer.hpp"

#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <spawn.h>
#include <stdexcept>
#include <sys/socket.h>
#include <sys/wait.h>

#include "conformance.hpp"

extern char** environ;

namespace ropeway::testing {

import_peer::import_peer(std::string const& device_name) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    throw std::runtime_error("socketpair");
  socket_.reset(ends[0]);
  unique_fd const theirs(ends[1]);
  std::string program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "import-peer";
  std::string name = device_name;
  char* arguments[] = {program.data(), name.data(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  // dup2 onto itself would keep close-on-exec on old C libraries.
  if (theirs.get() == import_socket) {
    ::fcntl(theirs.get(), F_SETFD, 0);
  } else {
    posix_spawn_file_actions_adddup2(&actions, theirs.get(), import_socket);
  }
  int const failed = ::posix_spawn(&pid_, program.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) throw std::runtime_error("can't start " + program + ": " + std::strerror(failed));
}

import_peer::~import_peer() {
  socket_.reset(); // it ends when it reads the end of file
  ::waitpid(pid_, nullptr, 0);
}

import_peer::answer import_peer::ask(import_request const& request, int fd) {
  iovec part{const_cast<import_request*>(&request), sizeof request};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  if (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL) < 0) return {0, "the importing process has ended"};
  import_reply reply;
  if (::recv(socket_.get(), &reply, sizeof reply, 0) != static_cast<ssize_t>(sizeof reply)) {
    return {0, "the importing process ended"};
  }
  reply.error.back() = '\0';
  return {reply.hash, reply.error.data()};
}

import_peer::answer import_peer::import(int handle, std::uint64_t bytes, memory::device_uuid const& origin) {
  import_request request;
  request.what = import_request::kind::region;
  request.bytes = bytes;
  request.origin = origin;
  return ask(request, handle);
}

import_peer::answer import_peer::look_again() { return ask({}, -1); }

import_peer::answer import_peer::let_go() {
  import_request request;
  request.what = import_request::kind::let_go;
  return ask(request, -1);
}

import_peer::answer import_peer::import(std::span<memory::part_handle const> parts, std::uint64_t bytes,
                                        memory::device_uuid const& origin) {
  import_request request;
  request.what = import_request::kind::segment;
  request.part_kind = static_cast<std::uint8_t>(parts[0].kind);
  request.parts = static_cast<std::uint32_t>(parts.size());
  request.bytes = bytes;
  request.origin = origin;
  auto seen = ask(request, -1);
  for (memory::part_handle const& part : parts) {
    if (!seen.error.empty()) return seen;
    request.what = import_request::kind::part;
    request.part_kind = static_cast<std::uint8_t>(part.kind);
    request.bytes = part.bytes;
    request.legacy = part.legacy;
    seen = ask(request, part.fd.get());
  }
  request.what = import_request::kind::finish;
  return seen.error.empty() ? ask(request, -1) : seen;
}

std::vector<std::byte> pattern(std::size_t bytes, std::uint64_t seed) {
  std::vector<std::byte> out(bytes);
  std::uint64_t state = seed * 0x9e3779b97f4a7c15U + 1;
  for (std::byte& b : out) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    b = static_cast<std::byte>(state >> 56);
  }
  return out;
}

} // namespace ropeway::testing
