#include "liar.hpp"

#include <array>
#include <boost/describe.hpp>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/codec.hpp"

namespace ropeway::testing {

BOOST_DESCRIBE_STRUCT(loose_piece, (), (tensor, bucket, tensor_offset, bucket_offset, bytes))
BOOST_DESCRIBE_STRUCT(loose_tensor, (), (name, type, dims))
BOOST_DESCRIBE_STRUCT(loose_manifest, (), (bucket_bytes, tensors, pieces))

namespace {

constexpr std::size_t most_fds = 253;
constexpr int patience_ms = 30'000;

[[noreturn]] void fail(char const* what) {
  throw std::runtime_error(std::string(what) + ": " + std::strerror(errno));
}

unique_fd plain_socket(std::string const& path, sockaddr_un& address) {
  unique_fd made(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!made) fail("socket");
  int const bytes = 1 << 20; // for datagrams that are too long
  ::setsockopt(made.get(), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
  address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  return made;
}

void wait_for(int fd, short events) {
  pollfd waiting{fd, events, 0};
  if (::poll(&waiting, 1, patience_ms) != 1)
    throw std::runtime_error("the other side says and reads nothing");
}

/// The code and text of any message that has them.
std::optional<told> words_in(protocol::message const& what) {
  return std::visit(
      [](auto const& m) -> std::optional<told> {
        if constexpr (requires { m.text, m.code; }) return told{static_cast<errc>(m.code), m.text};
        return std::nullopt;
      },
      what);
}

} // namespace

liar liar::at(std::string const& path) {
  sockaddr_un address;
  auto made = plain_socket(path, address);
  if (::connect(made.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fail("connect");
  return liar(std::move(made));
}

std::vector<std::byte> liar::written(protocol::message const& what) {
  std::vector<std::byte> bytes;
  codec::encode(what, bytes);
  return bytes;
}

void liar::say(protocol::message const& what, std::initializer_list<int> fds) {
  say_bytes(written(what), std::span(fds.begin(), fds.size()));
}

void liar::say_bytes(std::span<std::byte const> bytes, std::span<int const> fds) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * most_fds)> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  for (;;) {
    if (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return;
    // Who was thrown out in the middle of a flood hears of it when it reads.
    if (errno == EPIPE || errno == ECONNRESET) return;
    if (errno != EAGAIN && errno != EINTR) fail("sendmsg");
    wait_for(socket_.get(), hears_meanwhile_ ? POLLIN | POLLOUT : POLLOUT);
    if (hears_meanwhile_) hear_what_is_there();
  }
}

std::optional<protocol::message> liar::hear() {
  std::vector<std::byte> buffer(256 * 1024);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * most_fds)> control{};
  for (;;) {
    iovec part{buffer.data(), buffer.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    ssize_t const got = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      wait_for(socket_.get(), POLLIN);
      continue;
    }
    if (got < 0 && errno == ECONNRESET) continue; // what was said before it is still there
    if (got <= 0) return std::nullopt;
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
      fd_.reset(fd);
    }
    std::string wrong;
    auto heard = protocol::decode(std::span(buffer).first(static_cast<std::size_t>(got)), wrong);
    if (!heard) throw std::runtime_error("the honest side wrote a message that can't be read: " + wrong);
    if (auto words = words_in(*heard)) last_ = std::move(*words);
    return heard;
  }
}

void liar::hear_what_is_there() {
  for (pollfd there{socket_.get(), POLLIN, 0}; ::poll(&there, 1, 0) == 1;)
    if (!hear()) return;
}

false_door::false_door(std::string const& path) {
  sockaddr_un address;
  socket_ = plain_socket(path, address);
  if (::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(socket_.get(), 4) != 0)
    fail("bind");
}

liar false_door::accept() {
  wait_for(socket_.get(), POLLIN);
  unique_fd one(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!one) fail("accept");
  int const bytes = 1 << 20;
  ::setsockopt(one.get(), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
  return liar(std::move(one));
}

// ---- descriptors ----

unique_fd memory_file(std::uint64_t bytes, int seals, bool reserve) {
  unique_fd made(::memfd_create("lie", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!made || ::ftruncate(made.get(), static_cast<off_t>(bytes)) != 0) fail("memfd");
  if (reserve && bytes != 0 && ::fallocate(made.get(), 0, 0, static_cast<off_t>(bytes)) != 0)
    fail("fallocate");
  if (seals == all_seals) seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;
  if (::fcntl(made.get(), F_ADD_SEALS, seals) != 0) fail("seals");
  return made;
}

unique_fd memory_file(std::span<std::byte const> content) {
  unique_fd made = memory_file(content.size(), 0);
  if (::pwrite(made.get(), content.data(), content.size(), 0) != static_cast<ssize_t>(content.size()))
    fail("write");
  if (::fcntl(made.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0)
    fail("seals");
  return made;
}

unique_fd pipe_end() {
  int ends[2] = {-1, -1};
  if (::pipe2(ends, O_CLOEXEC) != 0) fail("pipe");
  unique_fd const other(ends[1]);
  return unique_fd(ends[0]);
}

unique_fd event_counter() { return unique_fd(::eventfd(0, EFD_CLOEXEC)); }

unique_fd open_file(char const* path, int flags) {
  unique_fd made(::open(path, flags | O_CLOEXEC, 0600));
  if (!made) fail(path);
  return made;
}

unique_fd reopened(int fd, int flags) {
  return open_file(("/proc/self/fd/" + std::to_string(fd)).c_str(), flags);
}

// ---- what an honest sender would say ----

std::vector<tensor_info> lied_about() {
  std::vector<tensor_info> all;
  for (int i = 0; i < 6; ++i) all.push_back({"layer." + std::to_string(i), dtype::f32, {500}});
  return all;
}

plan::manifest const& honest_manifest() {
  static plan::manifest const made = plan::manifest::cut(lied_about(), lie_bucket);
  return made;
}

protocol::hello honest_hello(std::string name) {
  protocol::hello hi;
  hi.magic = protocol::hello_magic;
  hi.oldest = protocol::version_min;
  hi.newest = protocol::version_max;
  hi.schema = protocol::schema_hash();
  hi.name = std::move(name);
  return hi;
}

protocol::watch honest_watch() {
  protocol::watch what;
  what.magic = protocol::hello_magic;
  what.oldest = protocol::version_min;
  what.newest = protocol::version_max;
  what.schema = protocol::schema_hash();
  return what;
}

protocol::welcome honest_welcome() {
  protocol::welcome w;
  w.version = protocol::version_max;
  w.sender[0] = 1;
  w.bucket_bytes = lie_bucket;
  w.silence_ms = 10'000;
  return w;
}

protocol::ring honest_ring(std::uint32_t id) {
  protocol::ring r;
  r.id = id;
  r.slot_bytes = lie_bucket;
  r.slots = lie_slots;
  return r;
}

protocol::begin honest_begin(std::uint64_t update) {
  auto const& m = honest_manifest();
  protocol::begin b;
  b.update = update;
  b.version = 7;
  b.layout = m.layout();
  b.total_bytes = m.total_bytes();
  b.tensors = static_cast<std::uint32_t>(m.tensors().size());
  b.buckets = static_cast<std::uint32_t>(m.buckets().size());
  return b;
}

protocol::begin honest_mapped_begin(std::uint64_t update, std::uint64_t placement) {
  auto b = honest_begin(update);
  b.placement = placement;
  return b;
}

plan::placement honest_placement() {
  plan::placement p;
  plan::segment all;
  all.id = lie_segment;
  all.bytes = lie_segment_bytes;
  all.parts = 1;
  all.kind = 1;
  p.segments.push_back(all);
  for (std::size_t i = 0; i < lied_about().size(); ++i) {
    auto& one = p.tensors.emplace_back();
    one.segment = 0;
    one.offset = 2000 * i;
    one.type = dtype::f32;
  }
  return p;
}

protocol::segment_part honest_part(std::uint64_t update) {
  protocol::segment_part part;
  part.update = update;
  part.segment = lie_segment;
  part.kind = 1;
  part.bytes = lie_segment_bytes;
  return part;
}

protocol::published honest_published(std::uint64_t update, std::uint32_t bucket, std::uint32_t slot) {
  protocol::published p;
  p.update = update;
  p.seq = bucket + 1;
  p.bucket = bucket;
  p.slot = slot;
  p.bytes = honest_manifest().buckets()[bucket].bytes;
  return p;
}

loose_manifest loose_manifest::honest() {
  loose_manifest made;
  for (auto const& tensor : honest_manifest().tensors()) {
    auto const extents = tensor.dims.extents();
    made.tensors.push_back(
        {tensor.name, static_cast<std::uint8_t>(tensor.type), {extents.begin(), extents.end()}});
  }
  for (auto const& p : honest_manifest().pieces())
    made.pieces.push_back({p.tensor, p.bucket, p.tensor_offset, p.bucket_offset, p.bytes});
  return made;
}

std::vector<std::byte> loose_manifest::encode() const {
  std::vector<std::byte> bytes;
  codec::encode(*this, bytes);
  return bytes;
}

std::string judged(told const& last, errc code, char const* words) {
  if (last.code == code && last.text.find(words) != std::string::npos) return {};
  return "it was told (" + std::to_string(int(last.code)) + ") " + last.text;
}

} // namespace ropeway::testing
