#include <algorithm>
#include <cstring>

#include "bench.hpp"
#include "cli/host_window.hpp"
#include "gpu.hpp"
#include "ropeway/error.hpp"

namespace ropeway::bench {
namespace {

constexpr std::size_t word = sizeof(std::uint64_t);

/// splitmix64 of a counter: any part of the stream can be made without the parts before it.
std::uint64_t random_word(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

std::uint64_t seed_of(std::uint64_t version, std::size_t tensor) {
  return random_word(random_word(0x726f7065776179, version), tensor);
}

/// `offset` is a multiple of a word; so is every size but the last of a tensor.
void fill_piece(std::span<std::byte> piece, std::uint64_t seed, std::uint64_t offset) {
  std::uint64_t index = offset / word;
  std::size_t at = 0;
  for (; at + word <= piece.size(); at += word, ++index) {
    std::uint64_t const value = random_word(seed, index);
    std::memcpy(piece.data() + at, &value, word);
  }
  std::uint64_t const last = random_word(seed, index);
  std::memcpy(piece.data() + at, &last, piece.size() - at);
}

bool right(std::span<std::byte const> piece, std::uint64_t seed, std::uint64_t offset) {
  std::uint64_t index = offset / word, different = 0;
  std::size_t at = 0;
  for (; at + word <= piece.size(); at += word, ++index) {
    std::uint64_t value;
    std::memcpy(&value, piece.data() + at, word);
    different |= value ^ random_word(seed, index);
  }
  std::uint64_t const last = random_word(seed, index);
  return different == 0 && std::memcmp(piece.data() + at, &last, piece.size() - at) == 0;
}

} // namespace

void fill(model_memory const& into, std::uint64_t version) {
  bool const on_gpu = into.where().is_cuda() && gpu::has_kernels();
  std::optional<cli::host_window> window;
  if (into.where().is_cuda() && !on_gpu) window.emplace(into.where());
  for (std::size_t i = 0; i < into.entries().size(); ++i) {
    auto const& tensor = into.entries()[i];
    auto const seed = seed_of(version, i);
    if (!into.where().is_cuda()) {
      fill_piece({tensor.data, tensor.bytes}, seed, 0);
      continue;
    }
    if (on_gpu) {
      gpu::of(into.where().ordinal()).fill(tensor.data, tensor.bytes, seed);
      continue;
    }
    auto const buffer = window->buffer();
    for (std::uint64_t at = 0; at < tensor.bytes; at += buffer.size()) {
      auto const part = std::min<std::uint64_t>(buffer.size(), tensor.bytes - at);
      fill_piece(buffer.first(part), seed, at);
      window->queue_to_device(0, tensor.data + at, part);
      window->finish();
    }
  }
  if (on_gpu) gpu::of(into.where().ordinal()).wait();
}

namespace {

/// Where the bytes of a shard lie in the whole tensor: runs of `run` bytes, `step` apart, from `first` on.
struct runs {
  std::uint64_t first = 0, run = 0, step = 0;
};

runs runs_of(plan const& of, tensor_info const& whole, std::uint64_t bytes) {
  auto const dimension = shared_dimension(whole, of.rank, of.ranks);
  if (!dimension) return {0, std::max<std::uint64_t>(bytes, 1), 0};
  if (*dimension == 0) return {of.rank * bytes, bytes, 0};
  std::uint64_t const row = bytes / whole.dims[0];
  return {of.rank * row, row, row * of.ranks};
}

/// Whether all is right, as the GPU itself sees it.
bool right_on_gpu(plan const& of, std::vector<tensor_info> const& all, model_memory const& held,
                  std::uint64_t version) {
  auto& on = gpu::of(held.where().ordinal());
  std::uint64_t words = 0;
  (void)on.right_words();
  for (std::size_t i = 0; i < held.entries().size(); ++i) {
    auto const& tensor = held.entries()[i];
    auto const where = runs_of(of, all[i], tensor.bytes);
    on.compare(tensor.data, tensor.bytes, seed_of(version, i), where.first, where.run, where.step);
    words += (tensor.bytes + word - 1) / word;
  }
  return on.right_words() == words;
}

} // namespace

void check(plan const& of, model_memory const& held, std::uint64_t version) {
  auto const all = shapes(of);
  if (held.where().is_cuda() && gpu::has_kernels() && right_on_gpu(of, all, held, version)) return;
  // Where the GPU found something, the host says what.
  cli::host_window window(held.where());
  for (std::size_t i = 0; i < held.entries().size(); ++i) {
    auto const& tensor = held.entries()[i];
    auto const seed = seed_of(version, i);
    auto const where = runs_of(of, all[i], tensor.bytes);
    std::uint64_t at = 0;
    window.read(tensor.data, tensor.bytes, [&](std::span<std::byte const> piece) {
      while (!piece.empty()) {
        std::uint64_t const in_run = at % where.run;
        auto const part = std::min<std::uint64_t>(piece.size(), where.run - in_run);
        if (!right(piece.first(part), seed, where.first + at / where.run * where.step + in_run))
          throw transfer_error(errc::loader_failed, "wrong bytes in " + tensor.info.name + " after " +
                                                        std::to_string(at) +
                                                        " bytes: ropeway or this machine is broken");
        piece = piece.subspan(part);
        at += part;
      }
    });
  }
  if (held.where().is_cuda() && gpu::has_kernels())
    throw transfer_error(errc::loader_failed, "the GPU finds wrong bytes where the host finds none");
}

void check_file(plan const& of, model_memory const& held) {
  read_options cached;
  cached.direct(false);
  auto const file = checkpoint::open(of.model);
  checkpoint_reader reader(file, cached);
  cli::host_window window(held.where());
  std::vector<std::byte> wanted(cli::host_window::window_bytes);
  for (std::size_t i = 0; i < held.entries().size(); ++i) {
    auto const& tensor = held.entries()[i];
    std::uint64_t at = 0;
    window.read(tensor.data, tensor.bytes, [&](std::span<std::byte const> piece) {
      reader.read(i, at, std::span(wanted).first(piece.size()));
      if (std::memcmp(wanted.data(), piece.data(), piece.size()) != 0)
        throw transfer_error(errc::loader_failed, "wrong bytes in " + tensor.info.name);
      at += piece.size();
    });
  }
}

} // namespace ropeway::bench
