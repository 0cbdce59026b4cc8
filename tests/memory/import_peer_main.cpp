// A process that imports the regions it is sent and says what it sees. Part of ropeway; Apache-2.0.
#include <cstring>
#include <exception>
#include <fcntl.h>
#include <string>
#include <sys/socket.h>

#include "conformance.hpp"
#include "import_peer.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

unique_fd receive(import_request& request, bool& ended) {
  iovec part{&request, sizeof request};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ended = ::recvmsg(import_socket, &message, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(sizeof request);
  unique_fd fd;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    int number = -1;
    std::memcpy(&number, CMSG_DATA(c), sizeof number);
    fd.reset(number);
  }
  return fd;
}

std::uint64_t look(memory::queue& queue, memory::region const& from) {
  std::vector<std::byte> seen(from.size());
  memory::copy_op op;
  op.from = from.data();
  op.from_where = from.where();
  op.to = seen.data();
  op.bytes = seen.size();
  queue.copy({&op, 1});
  queue.mark();
  if (!queue.drain(std::chrono::seconds(20)))
    throw transfer_error(errc::device_failed, "the copy did not finish");
  if (queue.poll().error) throw transfer_error(queue.poll().error, "the copy failed");
  return hash_of(seen);
}

// Whether there is something to be looked at now.
bool step(memory::backend& backend, import_request const& request, unique_fd fd,
          std::unique_ptr<memory::segment_importer>& importer, std::shared_ptr<memory::region>& region) {
  using kind = import_request::kind;
  switch (request.what) {
  case kind::look_again: return true;
  case kind::region:
    region = backend.import_region(std::move(fd), request.bytes, request.origin);
    return true;
  case kind::segment:
    importer = backend.start_import(static_cast<memory::part_kind>(request.part_kind), request.bytes,
                                    request.parts, request.origin);
    return false;
  case kind::part: {
    memory::part_handle part;
    part.kind = static_cast<memory::part_kind>(request.part_kind);
    part.bytes = request.bytes;
    part.legacy = request.legacy;
    part.fd = std::move(fd);
    importer->add(std::move(part));
    return false;
  }
  case kind::finish: region = importer->finish(); return true;
  case kind::let_go: region.reset(); return false;
  }
  return false;
}

} // namespace

int main(int, char** arguments) {
  auto const where = device::parse(arguments[1] != nullptr ? arguments[1] : "");
  std::string no_device;
  std::shared_ptr<memory::backend> backend;
  std::unique_ptr<memory::queue> queue;
  try {
    backend = memory::system_backends()->get(where.value());
    queue = backend->make_queue();
  } catch (std::exception const& error) { no_device = error.what(); }
  std::shared_ptr<memory::region> region;
  std::unique_ptr<memory::segment_importer> importer;
  for (;;) {
    import_request request;
    bool ended = false;
    unique_fd fd = receive(request, ended);
    if (ended) return 0;
    import_reply reply;
    std::string words = no_device;
    try {
      bool const worth_a_look = words.empty() && step(*backend, request, std::move(fd), importer, region);
      if (worth_a_look && region) reply.hash = look(*queue, *region);
    } catch (std::exception const& error) { words = error.what(); }
    words.copy(reply.error.data(), reply.error.size() - 1);
    if (::send(import_socket, &reply, sizeof reply, MSG_NOSIGNAL) < 0) return 1;
  }
}
