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
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <system_error>
#include <utility>
#include <vector>

#include "../support/fork_child.hpp"
#include "choices.hpp"
#include "memory/host/region.hpp"
#include "memory/memory.hpp"
#include "ropeway/error.hpp"
#include "wire/connection.hpp"
#include "wire/socket.hpp"

namespace ropeway::fuzz {
namespace {

constexpr std::size_t buffer_bytes = 64; ///< what the receiver has room for

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

std::pair<unique_fd, unique_fd> socket_pair() {
  int ends[2];
  promise(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0,
          "a socket pair");
  return {unique_fd(ends[0]), unique_fd(ends[1])};
}

/// While this lives, no new descriptor can be had.
class no_descriptors {
 public:
  no_descriptors() {
    promise(::getrlimit(RLIMIT_NOFILE, &before_) == 0, "the limit of descriptors");
    unique_fd const lowest(::fcntl(0, F_DUPFD_CLOEXEC, 0));
    rlimit now = before_;
    now.rlim_cur = static_cast<rlim_t>(lowest.get());
    promise(lowest.get() > 0 && ::setrlimit(RLIMIT_NOFILE, &now) == 0, "can be lowered");
  }
  no_descriptors(no_descriptors const&) = delete;
  no_descriptors& operator=(no_descriptors const&) = delete;
  ~no_descriptors() { (void)::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

/// A connection to a process that has ended, while somebody else keeps its socket open; its queue is full.
class orphan {
 public:
  explicit orphan(asio::io_context& io) {
    auto [here, there] = socket_pair();
    testing::fork_child maker([&] {
      auto made = socket_pair(); // the system remembers who made it
      std::vector<unique_fd> both;
      both.push_back(std::move(made.first));
      both.push_back(std::move(made.second));
      return send_raw(there.get(), input(reinterpret_cast<std::uint8_t const*>("x"), 1), both, 0) ? 0 : 1;
    });
    promise(maker.wait() == 0, "another process makes sockets");
    auto const taken = std::make_unique<wire::raw_message>();
    std::array<std::byte, 1> letter{};
    wire::receive_now(here.get(), letter, *taken);
    promise(taken->error == 0 && taken->fd_count == 2, "and hands them over");
    kept_open_ = std::move(taken->fds[0]);
    auto const number = taken->fds[1].get();
    ours_ = wire::connection(wire::make_strand(io.get_executor()), std::move(taken->fds[1]), wire::trust());
    int const least = 1;
    (void)::setsockopt(number, SOL_SOCKET, SO_SNDBUF, &least, sizeof least);
    unsigned sent = 0;
    while (!says_gone([&] { return ours_.try_send(letter); })) promise(++sent < 1000, "a queue becomes full");
    promise(sent > 0, "what fits is sent, also to who has ended");
    refused(io, socket_pair().first, wire::trust::only({}), make_error_code(errc::not_permitted));
    refused(io, unique_fd(::eventfd(0, EFD_CLOEXEC)), wire::trust(),
            std::error_code(ENOTSOCK, std::system_category()));
  }

  void check() {
    std::array<std::byte, 8> buffer{};
    promise(ours_.is_open() && ours_.peer().uid == ::geteuid() && ours_.peer().pid != ::getpid(),
            "who has ended is known, and whose it was");
    (void)ours_.watches_process(); // as the kernel can
    promise(says_gone([&] { return ours_.try_receive(buffer).has_value(); }),
            "nothing comes from who has ended, and that is said");
    promise(says_gone([&] { return ours_.try_send(buffer); }),
            "a full queue of who has ended is not waited for");
  }

 private:
  static void refused(asio::io_context& io, unique_fd socket, wire::trust const& whom, std::error_code why) {
    try {
      wire::connection(wire::make_strand(io.get_executor()), std::move(socket), whom);
      promise(false, "whose user is not trusted or not known is not served");
    } catch (transfer_error const& e) { promise(e.code() == why, "and that is why"); }
  }
  template <class F>
  static bool says_gone(F f) {
    try {
      (void)f();
      return false;
    } catch (transfer_error const& e) {
      promise(e.code() == make_error_code(errc::peer_gone), "who has ended has gone");
      return true;
    }
  }
  unique_fd kept_open_;
  wire::connection ours_;
};

class conversation {
 public:
  conversation(choices& from, asio::io_context& io) : from_(from) {
    auto [peer, mine] = socket_pair();
    peer_ = std::move(peer);
    number_ = mine.get();
    ours_ = wire::connection(wire::make_strand(io.get_executor()), std::move(mine), wire::trust());
  }

  void hold(orphan& other) {
    for (unsigned step = 0; step < 10 && !from_.empty(); ++step) {
      switch (from_.below(12)) {
      case 0:
      case 1: receive(); break;
      case 2: { // no descriptor can be taken
        no_descriptors const now;
        receive(true);
        break;
      }
      case 3: // the peer goes, having read nothing or something of what we said
        if (from_.flip()) peer_reads();
        peer_.reset();
        break;
      case 4:
      case 5: send(); break;
      case 6: fill(); break;
      case 7: peer_reads(); break;
      case 8: other.check(); break;
      default: peer_sends();
      }
    }
    peer_reads();
    if (from_.flip()) peer_.reset();
    for (unsigned i = 0; i < 12 && next_ < waiting_.size(); ++i) receive();
    receive();
    ours_.close();
    promise(!ours_.is_open(), "what was closed is closed");
    refused_when_closed([&] { (void)ours_.try_receive(buffer_, 1); });
    refused_when_closed([&] { (void)ours_.try_send(buffer_); });
  }

 private:
  template <class F>
  static void refused_when_closed(F f) {
    try {
      f();
      promise(false, "nothing comes or goes after close");
    } catch (transfer_error const& e) {
      promise(e.code() == make_error_code(errc::not_open), "it is not open");
    }
  }

  void receive(bool no_room = false) {
    std::optional<wire::received> got;
    bool const expected = next_ < waiting_.size();
    std::size_t const most_fds = from_.below(3);
    try {
      got = ours_.try_receive(buffer_, most_fds);
    } catch (transfer_error const& e) {
      if (e.code() == make_error_code(errc::protocol_error)) {
        promise(expected && (waiting_[next_].bytes > buffer_.size() || waiting_[next_].fds > most_fds),
                "only a message too long, or with too much, breaks the protocol");
        ++next_;
        return;
      }
      if (e.code() == std::error_code(EMFILE, std::system_category())) {
        promise(no_room && expected && waiting_[next_].fds != 0,
                "only descriptors need room for descriptors");
        ++next_;
        return;
      }
      promise(e.code() == make_error_code(errc::peer_gone), "else the peer has gone");
      // An empty message is an end as well.
      promise(!peer_ || (expected && waiting_[next_].bytes == 0), "a peer that is there has not gone");
      if (expected && waiting_[next_].bytes == 0) ++next_;
      return;
    }
    promise(got.has_value() == expected, "what was sent comes, and nothing else");
    if (!got) return;
    sent const& what = waiting_[next_++];
    promise(got->bytes == what.bytes && got->fds.size() == what.fds && what.fds <= most_fds,
            "it comes as it was sent");
    promise(
        std::equal(what.content.begin(), what.content.end(), reinterpret_cast<std::uint8_t*>(buffer_.data())),
        "with its bytes");
    for (auto& fd : got->fds) {
      promise((::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) != 0, "no descriptor is inherited by children");
      struct stat about {};
      promise(::fstat(fd.get(), &about) == 0, "it is open");
      auto announced = from_.number();
      if (from_.flip()) announced = static_cast<std::uint64_t>(about.st_size);
      import(std::move(fd), announced);
    }
  }

  /// Room for the longest message and a byte: made once, because that takes long.
  static std::vector<std::byte>& space() {
    static std::vector<std::byte> room(wire::max_message + 1);
    return room;
  }

  /// True if it was sent, false if the queue is full.
  bool try_send(std::size_t size, std::size_t fds, int fd) {
    std::span const bytes(space().data(), size);
    space().front() = static_cast<std::byte>(said_.size());
    std::vector<int> const numbers(fds, fd);
    try {
      bool const went = ours_.try_send(bytes, numbers);
      promise(size != 0 && size <= wire::max_message && fds <= wire::max_fds, "limits hold for who sends");
      promise(fds == 0 || fd >= 0, "a descriptor that is closed is not sent");
      if (!went) {
        promise(!said_.empty(), "a queue that nobody has filled is not full");
        return false;
      }
      promise(static_cast<bool>(peer_), "nothing is said to who has gone");
      said_.push_back({size, fds});
      return true;
    } catch (transfer_error const& e) {
      auto const code = e.code();
      if (size == 0)
        promise(code == make_error_code(errc::invalid_argument), "an empty message is refused");
      else if (size > wire::max_message || fds > wire::max_fds)
        promise(code == make_error_code(errc::overflow), "a message that is too long is refused");
      else if (!peer_ && code == make_error_code(errc::peer_gone))
        return true;
      else if (fds != 0 && fd < 0)
        promise(code == std::error_code(EBADF, std::system_category()), "the system's own words are kept");
      else
        promise(narrow_ && size > 1000 && code == make_error_code(errc::overflow),
                "only a message that the system has no room for is too long");
      return true;
    }
  }
  void send() {
    auto const how = from_.byte();
    std::size_t size = 1 + how / 16, fds = how / 8 % 3;
    int fd = 0;
    switch (how % 8) {
    case 0: size = 0; break;
    case 1: size = wire::max_message + 1; break;
    case 2: size = wire::max_message; break;
    case 3: fds = wire::max_fds + 1; break;
    case 4:
      fds = 1;
      fd = -1;
      break;
    case 5: fds = how == 5 ? wire::max_fds : 1; break;
    default: break;
    }
    (void)try_send(size, fds, fd);
  }
  /// Until the queue is full, which is soon: first it is made small.
  void fill() {
    int const least = 1;
    narrow_ = ::setsockopt(number_, SOL_SOCKET, SO_SNDBUF, &least, sizeof least) == 0;
    if (!peer_) return;
    for (unsigned i = 0; try_send(1, 0, 0); ++i) promise(i < 1000, "a queue becomes full");
  }
  void peer_reads() {
    if (!peer_) return;
    auto const taken = std::make_unique<wire::raw_message>();
    for (std::size_t i = 0; i < said_.size(); ++i) {
      wire::receive_now(peer_.get(), space(), *taken);
      promise(taken->error == 0 && taken->bytes == said_[i].bytes && taken->fd_count == said_[i].fds,
              "what was sent arrives");
      promise(space().front() == static_cast<std::byte>(i), "in order");
      *taken = {};
    }
    wire::receive_now(peer_.get(), space(), *taken);
    promise(taken->error == EAGAIN, "and nothing else");
    said_.clear();
  }
  void peer_sends() {
    if (!peer_) return;
    std::vector<unique_fd> fds;
    unsigned count = from_.byte();
    unsigned const parts = count & 1;
    count = count % 4 != 3 ? count / 8 % 3 : count / 8 % 10;
    for (unsigned i = 0; i < count; ++i) fds.push_back(descriptor_of(from_));
    auto const size = from_.byte();
    auto const bytes = from_.take(size % 100);
    if (!send_raw(peer_.get(), bytes, fds, parts)) return; // the system's own rules
    waiting_.push_back({bytes.size(), count, {bytes.begin(), bytes.end()}});
  }

  choices& from_;
  unique_fd peer_;
  int number_ = -1; ///< of our socket
  wire::connection ours_;
  std::array<std::byte, buffer_bytes> buffer_{};
  std::vector<sent> waiting_; ///< from the peer
  std::size_t next_ = 0;      ///< of them
  struct said {
    std::size_t bytes, fds;
  };
  std::vector<said> said_; ///< to the peer, which has not read it
  bool narrow_ = false;    ///< the queue was made small
};

} // namespace

void datagram(input in) {
  static asio::io_context io;
  static orphan nobody(io);
  [[maybe_unused]] static bool const warm = [] {
    choices nothing({});
    conversation(nothing, io).hold(nobody); // what is made once is made now
    return true;
  }();
  auto const before = open_descriptors();
  choices from(in);
  conversation(from, io).hold(nobody);
  io.restart();
  io.poll();
  promise(open_descriptors() == before, "no descriptor is left");
}

} // namespace ropeway::fuzz
