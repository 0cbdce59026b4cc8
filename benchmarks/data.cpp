#include <algorithm>
#include <cstring>

#include "bench.hpp"
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

void fill(cli::weights const& into, cli::host_window& window, std::uint64_t version) {
  for (std::size_t i = 0; i < into.entries().size(); ++i) {
    auto const& tensor = into.entries()[i];
    auto const seed = seed_of(version, i);
    if (!into.where().is_cuda()) {
      fill_piece({tensor.data, tensor.bytes}, seed, 0);
      continue;
    }
    auto const buffer = window.buffer();
    for (std::uint64_t at = 0; at < tensor.bytes; at += buffer.size()) {
      auto const part = std::min<std::uint64_t>(buffer.size(), tensor.bytes - at);
      fill_piece(buffer.first(part), seed, at);
      window.queue_to_device(0, tensor.data + at, part);
      window.finish();
    }
  }
}

namespace {

/// Where the bytes of a shard lie in the whole tensor: runs of `run` bytes, `step` apart, from `first` on.
struct runs {
  std::uint64_t first = 0, run = 0, step = 0;
};

runs runs_of(plan const& of, tensor_info const& whole, std::uint64_t bytes) {
  auto const ranks = of.receivers.size();
  auto const dimension = of.sharded ? shared_dimension(whole, ranks) : std::nullopt;
  if (!dimension) return {0, bytes, 0};
  if (*dimension == 0) return {of.rank * bytes, bytes, 0};
  std::uint64_t const row = bytes / whole.dims[0];
  return {of.rank * row, row, row * ranks};
}

} // namespace

void check(plan const& of, cli::weights const& held, cli::host_window& window, std::uint64_t version) {
  auto const all = shapes(of);
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
}

} // namespace ropeway::bench
