// Any messages with any descriptors through a real socket: whatever the peer sends, one message comes out or
// one error, no descriptor is left over, and only sealed memory of the announced size is mapped.
#include <algorithm>
#include <array>
#include <asio/io_context.hpp>
#include <cerrno>
#include <fcntl.h>
#include <optional>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <vector>

#include "choices.hpp"
#include "memory/host/region.hpp"
#include "memory/memory.hpp"
#include "ropeway/error.hpp"
#include "wire/connection.hpp"
#include "wire/socket.hpp"

namespace ropeway::fuzz {
namespace {

constexpr std::size_t buffer_bytes = 64; ///< what the receiver has room for
constexpr std::size_t most_fds = 1;

/// How many of the first descriptors are open; new ones are always the lowest. (/proc/self/fd takes ten times
/// as long.)
std::size_t open_descriptors() {
  std::array<pollfd, 128> all{};
  for (std::size_t i = 0; i < all.size(); ++i) all[i].fd = static_cast<int>(i);
  promise(::poll(all.data(), all.size(), 0) >= 0, "descriptors can be counted");
  return static_cast<std::size_t>(
      std::count_if(all.begin(), all.end(), [](auto const& p) { return (p.revents & POLLNVAL) == 0; }));
}

/// A memory file as `from` wants it: size, seals, what is really there, and how it may be used.
unique_fd memory_file(choices& from) {
  static constexpr int seals[] = {F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_SEAL};
  auto const how = from.byte();
  unique_fd fd(::memfd_create("fuzz", MFD_CLOEXEC | (how & 0x80 ? 0u : unsigned{MFD_ALLOW_SEALING})));
  auto const size = static_cast<off_t>(from.number() * (how & 0x40 ? 4096 : 1) % (std::uint64_t{1} << 42));
  promise(static_cast<bool>(fd) && ::ftruncate(fd.get(), size) == 0, "a memory file");
  if ((how & 0x20) && size < 1 << 20)
    promise(::fallocate(fd.get(), 0, 0, std::max<off_t>(size, 1)) == 0, "filled");
  int wanted = 0;
  for (int bit = 0; bit < 5; ++bit)
    if (how >> bit & 1) wanted |= seals[bit];
  // A good one often enough.
  if (wanted == (F_SEAL_SHRINK | F_SEAL_SEAL)) wanted |= F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
  (void)::fcntl(fd.get(), F_ADD_SEALS, wanted);
  return fd;
}

unique_fd descriptor_of(choices& from) {
  switch (from.below(8)) {
  case 0: {
    int ends[2];
    promise(::pipe2(ends, O_CLOEXEC) == 0, "a pipe");
    unique_fd const other(ends[1]);
    return unique_fd(ends[0]);
  }
  case 1: return unique_fd(::eventfd(0, EFD_CLOEXEC));
  case 2: return unique_fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  case 3: return unique_fd(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  default: return memory_file(from);
  }
}

/// Maps what came if it may be mapped, and reads all of it.
void import(unique_fd fd, std::uint64_t announced) {
  struct stat about {};
  promise(::fstat(fd.get(), &about) == 0, "what came is open");
  int const seals = ::fcntl(fd.get(), F_GET_SEALS);
  bool const there =
      static_cast<std::uint64_t>(about.st_blocks) * 512 >= static_cast<std::uint64_t>(about.st_size);
  std::shared_ptr<memory::region> mapped;
  try {
    mapped = memory::host::import_region(std::move(fd), announced);
  } catch (transfer_error const& e) {
    promise(e.code() == make_error_code(errc::bad_region), "what is no region is called so");
    return;
  }
  promise(S_ISREG(about.st_mode) && seals >= 0 && (seals & F_SEAL_SHRINK) != 0 &&
              (seals & F_SEAL_GROW) != 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0,
          "only sealed memory is mapped");
  promise(static_cast<std::uint64_t>(about.st_size) == announced && mapped->size() == announced,
          "only memory of the announced size is mapped");
  promise(there, "only memory that its maker has paid for is mapped");
  unsigned sum = 0;
  for (std::uint64_t i = 0; i < announced; i += 512) sum += std::to_integer<unsigned>(mapped->data()[i]);
  promise(sum == 0 && mapped->data()[announced - 1] == std::byte{0}, "it can be read to its end");
}

/// What the peer sends, straight to the system: nothing of ours is in its way.
bool send_raw(int socket, input bytes, std::vector<unique_fd> const& fds, unsigned parts) {
  std::vector<int> numbers;
  for (auto const& fd : fds) numbers.push_back(fd.get());
  iovec part{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[32 * CMSG_SPACE(sizeof(int))] = {};
  msghdr m{};
  m.msg_iov = &part;
  m.msg_iovlen = 1;
  if (!numbers.empty()) {
    m.msg_control = control;
    // In one control message, or each in its own.
    std::size_t const each = parts == 0 ? numbers.size() : 1;
    std::size_t used = 0;
    for (std::size_t i = 0; i < numbers.size(); i += each) {
      auto* const c = reinterpret_cast<cmsghdr*>(control + used);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof(int) * each);
      std::copy_n(&numbers[i], each, reinterpret_cast<int*>(CMSG_DATA(c)));
      used += CMSG_SPACE(sizeof(int) * each);
    }
    m.msg_controllen = used;
  }
  return ::sendmsg(socket, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

struct sent {
  std::size_t bytes = 0, fds = 0;
  std::vector<std::uint8_t> content;
};

void converse(choices& from, asio::io_context& io) {
  int ends[2];
  promise(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0,
          "a socket pair");
  unique_fd peer(ends[0]);
  wire::connection ours(wire::make_strand(io.get_executor()), unique_fd(ends[1]), wire::trust());
  std::vector<sent> waiting;
  std::size_t next = 0;
  std::vector<std::byte> buffer(buffer_bytes);
  bool open = true;
  auto const receive = [&] {
    std::optional<wire::received> got;
    bool const expected = next < waiting.size();
    try {
      got = ours.try_receive(buffer, most_fds);
    } catch (transfer_error const& e) {
      if (e.code() == make_error_code(errc::protocol_error)) {
        promise(expected && (waiting[next].bytes > buffer_bytes || waiting[next].fds > most_fds),
                "only a message too long, or with too much, breaks the protocol");
        ++next;
        return;
      }
      promise(e.code() == make_error_code(errc::peer_gone), "else the peer has gone");
      // An empty message is an end as well.
      promise(!peer || !open || (expected && waiting[next].bytes == 0), "a peer that is there has not gone");
      if (expected && waiting[next].bytes == 0) ++next;
      return;
    }
    promise(got.has_value() == expected, "what was sent comes, and nothing else");
    if (!got) return;
    sent const& what = waiting[next++];
    promise(got->bytes == what.bytes && got->fds.size() == what.fds, "it comes as it was sent");
    promise(
        std::equal(what.content.begin(), what.content.end(), reinterpret_cast<std::uint8_t*>(buffer.data())),
        "with its bytes");
    for (auto& fd : got->fds) {
      promise((::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) != 0, "no descriptor is inherited by children");
      struct stat about {};
      promise(::fstat(fd.get(), &about) == 0, "it is open");
      auto announced = from.number();
      if (from.flip()) announced = static_cast<std::uint64_t>(about.st_size);
      import(std::move(fd), announced);
    }
  };
  for (unsigned step = 0; step < 8 && !from.empty(); ++step) {
    switch (from.below(8)) {
    case 0: receive(); break;
    case 1: // the peer goes, having read nothing or something of what we said
      if (from.flip() && peer) (void)ours.try_send(std::as_bytes(std::span("bye")));
      peer.reset();
      break;
    case 2: {
      if (!peer) break;
      try {
        unique_fd const null(::open("/dev/null", O_RDWR | O_CLOEXEC));
        std::vector<int> const fds(from.byte() % 2 ? 2 : 0, null.get());
        std::vector<std::byte> const bytes(from.number() % (wire::max_message + 2));
        promise(ours.try_send(bytes, fds), "there is room");
        promise(!bytes.empty() && bytes.size() <= wire::max_message, "limits hold for who sends");
        auto const taken = std::make_unique<wire::raw_message>();
        std::vector<std::byte> space(bytes.size());
        wire::receive_now(peer.get(), space, *taken);
        promise(taken->error == 0 && taken->bytes == bytes.size() && taken->fd_count == fds.size(),
                "it arrives");
      } catch (transfer_error const& e) {
        promise(e.code() == make_error_code(errc::invalid_argument) ||
                    e.code() == make_error_code(errc::overflow),
                "a message that can't be sent is refused");
      }
      break;
    }
    default: {
      if (!peer) break;
      std::vector<unique_fd> fds;
      unsigned count = from.byte();
      unsigned const parts = count & 1;
      count = count % 4 != 3 ? count / 8 % 3 : count / 8 % 10;
      for (unsigned i = 0; i < count; ++i) fds.push_back(descriptor_of(from));
      auto const size = from.byte();
      auto const bytes = from.take(size % 100);
      if (!send_raw(peer.get(), bytes, fds, parts)) break; // the system's own rules
      waiting.push_back({bytes.size(), count, {bytes.begin(), bytes.end()}});
    }
    }
  }
  if (from.flip()) peer.reset();
  for (unsigned i = 0; i < 12 && next < waiting.size(); ++i) receive();
  receive();
  ours.close();
  open = false;
  try {
    (void)ours.try_receive(buffer, most_fds);
    promise(false, "nothing comes after close");
  } catch (transfer_error const& e) {
    promise(e.code() == make_error_code(errc::not_open), "it is not open");
  }
}

} // namespace

void datagram(input in) {
  static asio::io_context io;
  [[maybe_unused]] static bool const warm = [] {
    choices nothing({});
    converse(nothing, io); // what is made once is made now
    return true;
  }();
  auto const before = open_descriptors();
  choices from(in);
  converse(from, io);
  io.restart();
  io.poll();
  promise(open_descriptors() == before, "no descriptor is left");
}

} // namespace ropeway::fuzz
