#include "cuda_pairs.hpp"

#include <array>
#include <asio/io_context.hpp>
#include <cstdio>
#include <filesystem>
#include <spawn.h>
#include <sys/wait.h>

#include "memory/cuda/kit.hpp"
#include "support/co_test.hpp"

namespace ropeway::testing {
namespace {

class kit_memory final : public memory_kind {
 public:
  explicit kit_memory(int ordinal) : kit_(kit::device(ordinal)), ordinal_(ordinal) {}
  device where() const override { return device::cuda(ordinal_); }
  std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override {
    return kit_.allocate(std::max<std::uint64_t>(bytes, 1));
  }
  void write(std::byte* to, std::span<std::byte const> from) override {
    if (!from.empty()) kit_.write(to, from);
  }
  void read(std::span<std::byte> to, std::byte const* from) override {
    if (to.empty()) return;
    // Views into a ring that another device made are read through the library's own copies.
    reader().read(to, from);
  }

 private:
  memory_kind& reader() {
    if (!reader_) reader_ = device_memory(memory::system_backends()->get(where()));
    return *reader_;
  }
  kit& kit_;
  int ordinal_;
  std::shared_ptr<memory_kind> reader_;
};

class lonely_backend final : public memory::backend {
 public:
  explicit lonely_backend(std::shared_ptr<backend> real) : real_(std::move(real)) {}
  device where() const noexcept override { return real_->where(); }
  memory::device_uuid uuid() const noexcept override { return real_->uuid(); }
  shared_region make_region(std::uint64_t bytes) override { return real_->make_region(bytes); }
  std::shared_ptr<memory::region> import_region(unique_fd handle, std::uint64_t bytes,
                                                memory::device_uuid const& origin) override {
    if (origin != memory::device_uuid{})
      throw transfer_error(errc::not_reachable, "peer access is refused on purpose");
    return real_->import_region(std::move(handle), bytes, origin);
  }
  bool can_reach(memory::device_uuid const& origin) const noexcept override {
    return origin == memory::device_uuid{};
  }
  std::shared_ptr<void> register_host(std::shared_ptr<memory::region> memory) override {
    return real_->register_host(std::move(memory));
  }
  std::unique_ptr<memory::queue> make_queue() override { return real_->make_queue(); }
  std::shared_ptr<memory::prepared_digests> prepare_digests(std::span<memory::digest_op const> ops,
                                                            std::uint32_t sums) override {
    return real_->prepare_digests(ops, sums);
  }

 private:
  std::shared_ptr<backend> real_;
};

class lonely_backends final : public memory::backends {
 public:
  std::shared_ptr<memory::backend> get(device where) override {
    auto real = real_->get(where);
    if (!where.is_cuda()) return real;
    return std::make_shared<lonely_backend>(std::move(real));
  }
  std::vector<memory::device_uuid> cuda_devices() override { return real_->cuda_devices(); }

 private:
  std::shared_ptr<memory::backends> real_ = memory::system_backends();
};

bool two_reach_each_other() {
  auto const devices = memory::system_backends();
  auto const all = devices->cuda_devices();
  return all.size() > 1 && devices->get(device::cuda(1))->can_reach(all[0]);
}

} // namespace

std::shared_ptr<memory_kind> cuda_memory(int ordinal) { return std::make_shared<kit_memory>(ordinal); }
std::shared_ptr<memory::backends> without_peers() { return std::make_shared<lonely_backends>(); }

std::vector<pairing> cuda_pairings() {
  auto const host = host_memory(), zero = cuda_memory(0);
  int const other = memory::system_backends()->cuda_devices().size() > 1 ? 1 : 0;
  auto const one = other ? cuda_memory(other) : zero;
  std::vector<pairing> all;
  all.push_back({"same GPU", zero, {}, {{zero, {}}}});
  all.push_back({"CPU to GPU", host, {}, {{zero, {}}}});
  all.push_back({"GPU to CPU", zero, {}, {{host, {}}}});
  if (two_reach_each_other()) all.push_back({"GPU to GPU, peers", zero, {}, {{one, {}}}});
  all.push_back({"GPU to GPU without peer access", zero, {}, {{one, without_peers()}}});
  all.push_back(
      {"one GPU to all kinds", zero, {}, {{zero, {}}, {host, {}}, {one, without_peers()}, {one, {}}}});
  all.push_back({"CPU to all kinds", host, {}, {{host, {}}, {zero, {}}, {one, {}}}});
  // Memory that also this process can map, as another one could.
  auto const shared = device_memory(memory::system_backends()->get(device::cuda(0)));
  all.push_back({"same GPU, mapped", shared, {}, {{zero, {}}}, route_choice::automatic, route::mapped});
  all.push_back({"same GPU, staged", shared, {}, {{zero, {}}}, route_choice::staged, route::staged});
  all.push_back({"same GPU, host", shared, {}, {{zero, {}}}, route_choice::host, route::host});
  if (two_reach_each_other())
    all.push_back(
        {"GPU to GPU, mapped", shared, {}, {{one, {}}, {zero, {}}}, route_choice::automatic, route::mapped});
  all.push_back({"one GPU to all kinds, mapped where that can be",
                 shared,
                 {},
                 {{zero, {}}, {host, {}}, {one, without_peers()}, {one, {}}}});
  return all;
}

std::vector<std::string> missing_pairings() {
  std::vector<std::string> missing;
  if (memory::system_backends()->cuda_devices().size() < 2) {
    missing.push_back("SKIPPED: two GPUs (this machine has one; a second session on it stands in)");
  } else if (!two_reach_each_other()) {
    missing.push_back("SKIPPED: two GPUs with peer access");
  }
  return missing;
}

std::vector<tensor_info> peer_layers() {
  std::vector<tensor_info> specs;
  for (int i = 0; i < 40; ++i) specs.push_back({"layer." + std::to_string(i), dtype::bf16, {300, 37}});
  return specs;
}

// ---- the other process
// --------------------------------------------------------------------------------------------

namespace {

awaitable<void> play_receiver(std::string path, int ordinal) {
  auto options = quick_receiver("peer");
  options.where(ordinal < 0 ? device::host() : device::cuda(ordinal)).connect_limit(std::chrono::seconds(30));
  receiver from(co_await asio::this_coro::executor, options);
  co_await from.connect(path);
  auto const kind = ordinal < 0 ? host_memory() : cuda_memory(ordinal);
  model held(kind, peer_layers(), 0);
  auto into = held.into();
  while (auto next = co_await from.next_update()) {
    load_report const report = co_await next->load_into(into);
    model const wanted(host_memory(), peer_layers(), report.version);
    if (auto wrong = difference(wanted.images(), held); !wrong.empty()) throw std::runtime_error(wrong);
  }
  co_await from.close();
  if (from.version() != 5) throw std::runtime_error("five versions were expected");
}

awaitable<void> play_sender(std::string path, int ordinal) {
  sender to(co_await asio::this_coro::executor, path, quick_sender(64 * kib));
  co_await to.wait_for_receivers(1, std::chrono::seconds(30));
  auto const kind = ordinal < 0 ? host_memory() : cuda_memory(ordinal);
  model source(kind, peer_layers(), 1);
  for (std::uint64_t version = 1; version <= 5; ++version) {
    source.fill(version);
    co_await to.send_weights(version, source.views());
  }
  co_await to.close();
}

/// Its device must have failed, and not something else.
template <class T>
void must_have_failed(attempt<T> const& end, char const* what) {
  if (end.error != make_error_code(errc::device_failed))
    throw std::runtime_error(std::string(what) + " ended otherwise: " + (end.ok() ? "well" : end.said()));
}

/// A kernel of the serving stream breaks its context while version 2 is loaded.
awaitable<void> play_receiver_that_breaks(std::string path, int ordinal) {
  auto& gpu = kit::device(ordinal);
  auto options = quick_receiver("peer");
  options.where(device::cuda(ordinal)).connect_limit(std::chrono::seconds(30));
  receiver from(co_await asio::this_coro::executor, options);
  co_await from.connect(path);
  model held(cuda_memory(ordinal), peer_layers(), 0);
  auto into = held.into();
  co_await load_next(from, into);
  auto const serving = gpu.make_stream();
  for (int version : {2, 3}) {
    auto next = co_await from.next_update();
    if (!next) throw std::runtime_error("three versions were expected");
    if (version == 2) gpu.trap(serving);
    auto const end = co_await try_to(next->load_into(into, after(serving, device::cuda(ordinal))));
    must_have_failed(end, "the load");
  }
  co_await from.close();
}

/// A kernel of the training stream breaks its context before version 2 is sent.
awaitable<void> play_sender_that_breaks(std::string path, int ordinal) {
  auto& gpu = kit::device(ordinal);
  sender to(co_await asio::this_coro::executor, path, quick_sender(64 * kib));
  co_await to.wait_for_receivers(1, std::chrono::seconds(30));
  model source(cuda_memory(ordinal), peer_layers(), 1);
  co_await to.send_weights(1, source.views());
  auto const training = gpu.make_stream();
  gpu.trap(training);
  for (std::uint64_t version : {2u, 3u}) {
    auto const end =
        co_await try_to(to.send_weights(version, source.views(), after(training, device::cuda(ordinal))));
    must_have_failed(end, "the send");
  }
  co_await to.close();
}

} // namespace

int play_peer(std::string const& role) {
  auto const first = role.find(':'), last = role.rfind(':');
  auto const what = role.substr(0, first), path = role.substr(first + 1, last - first - 1);
  int const ordinal = std::stoi(role.substr(last + 1));
  asio::io_context io(1);
  int status = 0;
  auto ended = [&](std::exception_ptr e) {
    try {
      if (e) std::rethrow_exception(e);
    } catch (std::exception const& error) {
      std::fprintf(stderr, "the peer: %s\n", error.what());
      status = 1;
    }
  };
  if (what == "receive")
    asio::co_spawn(io, play_receiver(path, ordinal), ended);
  else if (what == "receive and break")
    asio::co_spawn(io, play_receiver_that_breaks(path, ordinal), ended);
  else if (what == "send and break")
    asio::co_spawn(io, play_sender_that_breaks(path, ordinal), ended);
  else
    asio::co_spawn(io, play_sender(path, ordinal), ended);
  io.run();
  return status;
}

int start_peer(std::string const& role, std::string const& visible) {
  std::string program = std::filesystem::read_symlink("/proc/self/exe"), option = "--peer=" + role;
  std::array<char*, 3> arguments{program.data(), option.data(), nullptr};
  std::vector<std::string> settings;
  for (char** each = environ; *each != nullptr; ++each)
    if (visible.empty() || !std::string(*each).starts_with("CUDA_VISIBLE_DEVICES="))
      settings.push_back(*each);
  if (!visible.empty()) settings.push_back("CUDA_VISIBLE_DEVICES=" + visible);
  std::vector<char*> environment;
  for (auto& each : settings) environment.push_back(each.data());
  environment.push_back(nullptr);
  pid_t child = 0;
  if (::posix_spawn(&child, program.c_str(), nullptr, nullptr, arguments.data(), environment.data()) != 0)
    return -1;
  return child;
}

int end_of_peer(int process) {
  int status = 0;
  if (process <= 0 || ::waitpid(process, &status, 0) != process) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

} // namespace ropeway::testing
