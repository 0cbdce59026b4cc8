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

class model {
 public:
  void add(std::string name, shape dims) { infos.push_back({std::move(name), dtype::bf16, dims}); }
  std::vector<tensor_info> infos;
};

std::vector<tensor_info> experts(std::uint64_t layers) {
  model of;
  of.add("embed_tokens.weight", {151936, 1024});
  for (std::uint64_t layer = 0; layer < layers; ++layer) {
    std::string const prefix = "layers." + std::to_string(layer) + ".";
    of.add(prefix + "self_attn.qkv_proj.weight", {1536, 1024});
    of.add(prefix + "self_attn.o_proj.weight", {1024, 1024});
    for (int expert = 0; expert < 128; ++expert) {
      std::string const name = prefix + "experts." + std::to_string(expert);
      of.add(name + ".gate_proj.weight", {256, 1024});
      of.add(name + ".up_proj.weight", {256, 1024});
      of.add(name + ".down_proj.weight", {1024, 256});
    }
    of.add(prefix + "router.weight", {128, 1024});
    of.add(prefix + "norm.weight", {1024});
  }
  return of.infos;
}

std::vector<tensor_info> qwen3_8b(std::uint64_t layers) {
  model of;
  of.add("embed_tokens.weight", {151936, 4096});
  for (std::uint64_t layer = 0; layer < layers; ++layer) {
    std::string const prefix = "layers." + std::to_string(layer) + ".";
    of.add(prefix + "self_attn.q_proj.weight", {4096, 4096});
    of.add(prefix + "self_attn.k_proj.weight", {1024, 4096});
    of.add(prefix + "self_attn.v_proj.weight", {1024, 4096});
    of.add(prefix + "self_attn.o_proj.weight", {4096, 4096});
    of.add(prefix + "self_attn.q_norm.weight", {128});
    of.add(prefix + "self_attn.k_norm.weight", {128});
    of.add(prefix + "mlp.gate_proj.weight", {12288, 4096});
    of.add(prefix + "mlp.up_proj.weight", {12288, 4096});
    of.add(prefix + "mlp.down_proj.weight", {4096, 12288});
    of.add(prefix + "input_layernorm.weight", {4096});
    of.add(prefix + "post_attention_layernorm.weight", {4096});
  }
  of.add("norm.weight", {4096});
  of.add("lm_head.weight", {151936, 4096});
  return of.infos;
}

} // namespace

std::vector<tensor_info> shapes(plan const& of) {
  return of.staged ? qwen3_8b(of.layers) : experts(of.layers);
}

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

void check(cli::weights const& held, cli::host_window& window, std::uint64_t version) {
  for (std::size_t i = 0; i < held.entries().size(); ++i) {
    auto const& tensor = held.entries()[i];
    auto const seed = seed_of(version, i);
    std::uint64_t at = 0;
    window.read(tensor.data, tensor.bytes, [&](std::span<std::byte const> piece) {
      if (!right(piece, seed, at))
        throw transfer_error(errc::loader_failed, "wrong bytes in " + tensor.info.name + " after " +
                                                      std::to_string(at) +
                                                      " bytes: ropeway or this machine is broken");
      at += piece.size();
    });
  }
}

} // namespace ropeway::bench
