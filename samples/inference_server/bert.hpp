// Sentence embeddings by a BERT encoder, in plain float32 on the CPU. A sample of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <memory>
#include <ropeway/tensor.hpp>
#include <span>
#include <string>
#include <vector>

/// Which tensors make up a model, and its sizes. Found by looking at what a checkpoint, or an update, has;
/// tensors that the server has no use for (position ids, the pooler) are left out.
struct bert_layout {
  /// Throws std::invalid_argument, naming the tensor, if one is missing or has another dtype or shape than
  /// the rest asks for. The number of heads can't be seen from the tensors.
  static bert_layout of(std::span<ropeway::tensor_info const> available, std::size_t heads);

  std::vector<ropeway::tensor_info> tensors;
  std::size_t words = 0, positions = 0, hidden = 0, inner = 0, layers = 0, heads = 0;
  std::size_t classes = 0; ///< of the classifier "probe.weight", "probe.bias"; 0 if there is none
  friend bool operator==(bert_layout const&, bert_layout const&) = default;
};

/// The weights of one version, in memory of their own, and what can be computed with them. Const members may
/// be called from any thread while nobody writes the weights.
class bert {
 public:
  explicit bert(bert_layout layout);

  bert_layout const& layout() const noexcept { return layout_; }
  /// Views to load into and to send from. They hold good as long as the model does.
  std::vector<ropeway::mutable_tensor_view> mutable_views();
  std::vector<ropeway::tensor_view> views() const;
  float* find(std::string_view name); ///< null if there is none

  /// One row of `hidden` floats a text: the mean over its tokens, of length 1. Each text is its ids, at most
  /// `positions` of them, all below `words` (std::invalid_argument otherwise).
  std::vector<float> embed(std::span<std::vector<std::int32_t> const> texts) const;
  /// The probabilities of the classes for one embedding. Only if there are any.
  std::vector<float> classify(std::span<float const> embedding) const;

 private:
  struct linear {
    float const *weight, *bias;
  };
  struct layer {
    linear query, key, value, attention_out, attention_norm, inner, outer, outer_norm;
  };
  float const* at(std::string_view name) const;
  linear pair(std::string const& name) const;
  class pass;

  bert_layout layout_;
  std::unique_ptr<float[]> memory_;
  std::vector<float*> where_; // one for each of layout_.tensors
  float const *word_rows_ = nullptr, *position_rows_ = nullptr, *type_row_ = nullptr;
  linear embedding_norm_{};
  std::vector<layer> layers_;
  linear probe_{};
};
