#include <algorithm>
#include <array>
#include <filesystem>

#include "bench.hpp"
#include "ropeway/checkpoint.hpp"
#include "ropeway/error.hpp"

namespace ropeway::bench {
namespace {

/// Sizes as published with the models; a tied head is not sent.
struct family {
  std::string_view name;
  std::uint64_t hidden, layers, heads, kv_heads, head, inter, vocab;
  bool tied;
  std::uint64_t experts;
};
constexpr std::array families{
    family{"qwen3-0.6b", 1024, 28, 16, 8, 128, 3072, 151936, true, 0},
    family{"qwen3-8b", 4096, 36, 32, 8, 128, 12288, 151936, false, 0},
    family{"qwen3-30b-a3b", 2048, 48, 32, 4, 128, 768, 151936, false, 128},
    family{"tiny", 64, 2, 4, 2, 16, 192, 512, true, 0}, // to try a command out
};
constexpr std::string_view small_experts = "moe-small", adapter = "adapter";

class tensors {
 public:
  void add(std::string name, shape dims) { all.push_back({std::move(name), dtype::bf16, dims}); }
  std::vector<tensor_info> all;
};

std::vector<tensor_info> transformer(family const& of, std::uint64_t layers) {
  tensors out;
  std::uint64_t const h = of.hidden;
  out.add("embed_tokens.weight", {of.vocab, h});
  for (std::uint64_t layer = 0; layer < (layers != 0 ? layers : of.layers); ++layer) {
    std::string const prefix = "layers." + std::to_string(layer) + ".";
    out.add(prefix + "self_attn.q_proj.weight", {of.heads * of.head, h});
    out.add(prefix + "self_attn.k_proj.weight", {of.kv_heads * of.head, h});
    out.add(prefix + "self_attn.v_proj.weight", {of.kv_heads * of.head, h});
    out.add(prefix + "self_attn.o_proj.weight", {h, of.heads * of.head});
    out.add(prefix + "self_attn.q_norm.weight", {of.head});
    out.add(prefix + "self_attn.k_norm.weight", {of.head});
    if (of.experts != 0) out.add(prefix + "mlp.gate.weight", {of.experts, h});
    for (std::uint64_t expert = 0; expert < std::max<std::uint64_t>(of.experts, 1); ++expert) {
      std::string const mlp =
          prefix + (of.experts != 0 ? "mlp.experts." + std::to_string(expert) + "." : std::string("mlp."));
      out.add(mlp + "gate_proj.weight", {of.inter, h});
      out.add(mlp + "up_proj.weight", {of.inter, h});
      out.add(mlp + "down_proj.weight", {h, of.inter});
    }
    out.add(prefix + "input_layernorm.weight", {h});
    out.add(prefix + "post_attention_layernorm.weight", {h});
  }
  out.add("norm.weight", {h});
  if (!of.tied) out.add("lm_head.weight", {of.vocab, h});
  return out.all;
}

/// A mixture of experts that fits a small machine: 386 tensors a layer, many of 512 KiB.
std::vector<tensor_info> experts(std::uint64_t layers) {
  tensors out;
  out.add("embed_tokens.weight", {151936, 1024});
  for (std::uint64_t layer = 0; layer < (layers != 0 ? layers : 20); ++layer) {
    std::string const prefix = "layers." + std::to_string(layer) + ".";
    out.add(prefix + "self_attn.qkv_proj.weight", {1536, 1024});
    out.add(prefix + "self_attn.o_proj.weight", {1024, 1024});
    for (int expert = 0; expert < 128; ++expert) {
      std::string const name = prefix + "experts." + std::to_string(expert);
      out.add(name + ".gate_proj.weight", {256, 1024});
      out.add(name + ".up_proj.weight", {256, 1024});
      out.add(name + ".down_proj.weight", {1024, 256});
    }
    out.add(prefix + "router.weight", {128, 1024});
    out.add(prefix + "norm.weight", {1024});
  }
  return out.all;
}

/// A low-rank adapter of some 10 MB, for q and v of an 8B model.
std::vector<tensor_info> low_rank(std::uint64_t layers) {
  tensors out;
  for (std::uint64_t layer = 0; layer < (layers != 0 ? layers : 36); ++layer) {
    std::string const prefix = "layers." + std::to_string(layer) + ".self_attn.";
    out.add(prefix + "q_proj.lora_A.weight", {10, 4096});
    out.add(prefix + "q_proj.lora_B.weight", {4096, 10});
    out.add(prefix + "v_proj.lora_A.weight", {10, 4096});
    out.add(prefix + "v_proj.lora_B.weight", {1024, 10});
  }
  return out.all;
}

} // namespace

std::string known_models() {
  std::string names;
  for (auto const& one : families) names += std::string(one.name) + ", ";
  return names + std::string(small_experts) + ", " + std::string(adapter);
}

std::vector<tensor_info> shapes(plan const& of) {
  for (auto const& one : families)
    if (one.name == of.model) return transformer(one, of.layers);
  if (of.model == small_experts) return experts(of.layers);
  if (of.model == adapter) return low_rank(of.layers);
  if (!std::filesystem::exists(of.model))
    throw transfer_error(errc::invalid_argument,
                         "no model " + of.model + ": name a checkpoint, or one of " + known_models());
  std::vector<tensor_info> out;
  auto const file = checkpoint::open(of.model);
  for (auto const& tensor : file.tensors()) out.push_back(tensor.info);
  return out;
}

std::optional<std::size_t> shared_dimension(tensor_info const& tensor, std::uint32_t rank,
                                            std::uint32_t ranks) {
  if (ranks == 0 || tensor.dims.rank() != 2) return std::nullopt;
  bool const by_columns = (ranks > 1 && rank + 1 == ranks) ||
                          tensor.name.find("o_proj.") != std::string::npos ||
                          tensor.name.find("down_proj.") != std::string::npos;
  std::size_t const dimension = by_columns ? 1 : 0;
  // Data is compared in words of 8 bytes.
  auto const own = byte_size(tensor.type, {tensor.dims[dimension] / ranks});
  if (tensor.dims[dimension] % ranks != 0 || !own || *own % 8 != 0) return std::nullopt;
  return dimension;
}

std::vector<tensor_info> held_shapes(plan const& of) {
  auto all = shapes(of);
  for (auto& tensor : all) {
    auto const dimension = shared_dimension(tensor, of.rank, of.ranks);
    if (!dimension) continue;
    std::array<std::uint64_t, 2> extents{tensor.dims[0], tensor.dims[1]};
    extents[*dimension] /= of.ranks;
    tensor.dims = shape(extents);
  }
  return all;
}

} // namespace ropeway::bench
