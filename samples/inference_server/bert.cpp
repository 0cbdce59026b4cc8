#include "bert.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>

#include "matmul.hpp"

namespace {

using ropeway::dtype;
using ropeway::shape;
using ropeway::tensor_info;

constexpr float norm_epsilon = 1e-12F;
constexpr std::size_t rows_at_once = 512; // of all texts of a pass; bounds what a pass needs in memory

std::string layer_name(std::size_t number) { return "encoder.layer." + std::to_string(number) + "."; }

class finder {
 public:
  explicit finder(std::span<tensor_info const> available) : available_(available) {}
  tensor_info const* find(std::string_view name) const {
    auto const found = std::find_if(available_.begin(), available_.end(),
                                    [&](auto const& info) { return info.name == name; });
    return found == available_.end() ? nullptr : &*found;
  }
  tensor_info const& get(std::string_view name) const {
    if (auto const* found = find(name)) return *found;
    throw std::invalid_argument("the model has no " + std::string(name));
  }
  /// Its size along `dimension`; it must have two.
  std::size_t extent(std::string_view name, std::size_t dimension) const {
    auto const& found = get(name);
    if (found.dims.rank() != 2 || found.dims[dimension] == 0)
      throw std::invalid_argument(found.name + " is no matrix: " + to_string(found.dims));
    return static_cast<std::size_t>(found.dims[dimension]);
  }

 private:
  std::span<tensor_info const> available_;
};

float dot(float const* a, float const* b, std::size_t count) {
  float sum = 0;
  multiply({a, 1, 0}, {b, 1, 0}, count, nullptr, {&sum, 0});
  return sum;
}

float gelu(float x) { return 0.5F * x * (1 + std::erf(x * 0.70710678F)); }

void soften(std::span<float> scores, float scale) {
  float const most = *std::max_element(scores.begin(), scores.end());
  float sum = 0;
  for (auto& score : scores) sum += score = std::exp((score - most) * scale);
  for (auto& score : scores) score /= sum;
}

} // namespace

bert_layout bert_layout::of(std::span<tensor_info const> available, std::size_t heads) {
  finder const from(available);
  bert_layout made;
  made.words = from.extent("embeddings.word_embeddings.weight", 0);
  made.hidden = from.extent("embeddings.word_embeddings.weight", 1);
  made.positions = from.extent("embeddings.position_embeddings.weight", 0);
  made.inner = from.extent("encoder.layer.0.intermediate.dense.weight", 0);
  made.heads = heads;
  if (heads == 0 || made.hidden % heads != 0)
    throw std::invalid_argument("a hidden size of " + std::to_string(made.hidden) + " can't be split into " +
                                std::to_string(heads) + " heads");
  while (from.find(layer_name(made.layers) + "intermediate.dense.weight")) ++made.layers;

  auto const take = [&](std::string name, shape dims) {
    auto const& found = from.get(name);
    if (found.type != dtype::f32 || found.dims != dims)
      throw std::invalid_argument(name + " is " + std::string(ropeway::name(found.type)) +
                                  to_string(found.dims) + " where F32" + to_string(dims) + " was expected");
    made.tensors.push_back(found);
  };
  auto const take_pair = [&](std::string const& name, shape dims) {
    take(name + ".weight", dims);
    take(name + ".bias", shape{dims[0]});
  };
  auto const hidden = made.hidden;
  take("embeddings.word_embeddings.weight", {made.words, hidden});
  take("embeddings.position_embeddings.weight", {made.positions, hidden});
  take("embeddings.token_type_embeddings.weight",
       {from.extent("embeddings.token_type_embeddings.weight", 0), hidden});
  take_pair("embeddings.LayerNorm", {hidden});
  for (std::size_t i = 0; i < made.layers; ++i) {
    for (auto const* part : {"query", "key", "value"})
      take_pair(layer_name(i) + "attention.self." + part, {hidden, hidden});
    take_pair(layer_name(i) + "attention.output.dense", {hidden, hidden});
    take_pair(layer_name(i) + "attention.output.LayerNorm", {hidden});
    take_pair(layer_name(i) + "intermediate.dense", {made.inner, hidden});
    take_pair(layer_name(i) + "output.dense", {hidden, made.inner});
    take_pair(layer_name(i) + "output.LayerNorm", {hidden});
  }
  if (from.find("probe.weight")) {
    made.classes = from.extent("probe.weight", 0);
    take_pair("probe", {made.classes, hidden});
  }
  return made;
}

bert::bert(bert_layout layout) : layout_(std::move(layout)) {
  std::size_t total = 0;
  std::vector<std::size_t> offsets;
  for (auto const& info : layout_.tensors) {
    offsets.push_back(total);
    total += (static_cast<std::size_t>(info.dims.elements().value()) + 15) / 16 * 16; // a cache line each
  }
  memory_ = std::make_unique_for_overwrite<float[]>(total);
  for (auto const offset : offsets) where_.push_back(memory_.get() + offset);

  word_rows_ = at("embeddings.word_embeddings.weight");
  position_rows_ = at("embeddings.position_embeddings.weight");
  type_row_ = at("embeddings.token_type_embeddings.weight"); // a text alone is all of type 0
  embedding_norm_ = pair("embeddings.LayerNorm");
  for (std::size_t i = 0; i < layout_.layers; ++i) {
    auto const name = layer_name(i);
    layers_.push_back({pair(name + "attention.self.query"), pair(name + "attention.self.key"),
                       pair(name + "attention.self.value"), pair(name + "attention.output.dense"),
                       pair(name + "attention.output.LayerNorm"), pair(name + "intermediate.dense"),
                       pair(name + "output.dense"), pair(name + "output.LayerNorm")});
  }
  if (layout_.classes > 0) probe_ = pair("probe");
}

float* bert::find(std::string_view name) {
  for (std::size_t i = 0; i < where_.size(); ++i)
    if (layout_.tensors[i].name == name) return where_[i];
  return nullptr;
}

float const* bert::at(std::string_view name) const {
  for (std::size_t i = 0; i < where_.size(); ++i)
    if (layout_.tensors[i].name == name) return where_[i];
  throw std::logic_error("no tensor " + std::string(name));
}

bert::linear bert::pair(std::string const& name) const { return {at(name + ".weight"), at(name + ".bias")}; }

std::vector<ropeway::mutable_tensor_view> bert::mutable_views() {
  std::vector<ropeway::mutable_tensor_view> made;
  for (std::size_t i = 0; i < where_.size(); ++i)
    made.emplace_back(layout_.tensors[i].name, layout_.tensors[i].type, layout_.tensors[i].dims, where_[i]);
  return made;
}

std::vector<ropeway::tensor_view> bert::views() const {
  std::vector<ropeway::tensor_view> made;
  for (std::size_t i = 0; i < where_.size(); ++i)
    made.emplace_back(layout_.tensors[i].name, layout_.tensors[i].type, layout_.tensors[i].dims, where_[i]);
  return made;
}

/// Some texts on their way through the layers, without padding: the tokens of all of them are rows of one
/// matrix, and only attention knows where a text begins.
class bert::pass {
 public:
  pass(bert const& model, std::span<std::vector<std::int32_t> const> texts)
      : model_(model), hidden_(model.layout_.hidden), texts_(texts) {
    for (auto const& text : texts) rows_ += text.size();
    state_.resize(rows_ * hidden_);
    read_words();
    query_.resize(state_.size()), key_.resize(state_.size()), value_.resize(state_.size());
    context_.resize(state_.size());
    inner_.resize(rows_ * model.layout_.inner);
  }

  void through(layer const& by) {
    apply(by.query, state_, hidden_, query_, hidden_);
    apply(by.key, state_, hidden_, key_, hidden_);
    apply(by.value, state_, hidden_, value_, hidden_);
    attend();
    apply(by.attention_out, context_, hidden_, query_, hidden_);
    add_and_norm(query_, by.attention_norm);
    apply(by.inner, state_, hidden_, inner_, model_.layout_.inner);
    for (auto& x : inner_) x = gelu(x);
    apply(by.outer, inner_, model_.layout_.inner, query_, hidden_);
    add_and_norm(query_, by.outer_norm);
  }

  void mean(float* into) const {
    float const* row = state_.data();
    for (auto const& text : texts_) {
      std::fill_n(into, hidden_, 0.0F);
      for (std::size_t token = 0; token < text.size(); ++token, row += hidden_)
        for (std::size_t i = 0; i < hidden_; ++i) into[i] += row[i];
      float const length =
          std::sqrt(dot(into, into, hidden_)); // dividing by the count as well changes nothing
      for (std::size_t i = 0; i < hidden_; ++i) into[i] /= std::max(length, 1e-12F);
      into += hidden_;
    }
  }

 private:
  void read_words() {
    float* row = state_.data();
    for (auto const& text : texts_) {
      for (std::size_t at = 0; at < text.size(); ++at, row += hidden_) {
        float const* const word = model_.word_rows_ + static_cast<std::size_t>(text[at]) * hidden_;
        float const* const position = model_.position_rows_ + at * hidden_;
        for (std::size_t i = 0; i < hidden_; ++i) row[i] = word[i] + position[i] + model_.type_row_[i];
      }
    }
    norm(model_.embedding_norm_);
  }

  void apply(linear by, std::vector<float> const& from, std::size_t depth, std::vector<float>& into,
             std::size_t width) const {
    multiply({from.data(), rows_, depth}, {by.weight, width, depth}, depth, by.bias, {into.data(), width});
  }

  void attend() {
    auto const heads = model_.layout_.heads, size = hidden_ / heads;
    float const scale = 1 / std::sqrt(static_cast<float>(size));
    std::size_t first = 0;
    for (auto const& text : texts_) {
      auto const length = text.size();
      scores_.resize(length * length);
      for (std::size_t head = 0; head < heads; ++head) {
        auto const offset = first * hidden_ + head * size;
        multiply({query_.data() + offset, length, hidden_}, {key_.data() + offset, length, hidden_}, size,
                 nullptr, {scores_.data(), length});
        for (std::size_t i = 0; i < length; ++i) {
          std::span const row(scores_.data() + i * length, length);
          soften(row, scale);
          float* const into = context_.data() + offset + i * hidden_;
          std::fill_n(into, size, 0.0F);
          for (std::size_t j = 0; j < length; ++j) {
            float const* const from = value_.data() + offset + j * hidden_;
            for (std::size_t k = 0; k < size; ++k) into[k] += row[j] * from[k];
          }
        }
      }
      first += length;
    }
  }

  void add_and_norm(std::vector<float> const& more, linear by) {
    for (std::size_t i = 0; i < state_.size(); ++i) state_[i] += more[i];
    norm(by);
  }

  void norm(linear by) {
    auto const count = static_cast<float>(hidden_);
    for (float* row = state_.data(); row != state_.data() + state_.size(); row += hidden_) {
      float sum = 0, squares = 0;
      for (std::size_t i = 0; i < hidden_; ++i) sum += row[i];
      float const middle = sum / count;
      for (std::size_t i = 0; i < hidden_; ++i) squares += (row[i] - middle) * (row[i] - middle);
      float const scale = 1 / std::sqrt(squares / count + norm_epsilon);
      for (std::size_t i = 0; i < hidden_; ++i)
        row[i] = (row[i] - middle) * scale * by.weight[i] + by.bias[i];
    }
  }

  bert const& model_;
  std::size_t hidden_;
  std::span<std::vector<std::int32_t> const> texts_;
  std::size_t rows_ = 0;
  std::vector<float> state_, query_, key_, value_, context_, inner_, scores_;
};

std::vector<float> bert::embed(std::span<std::vector<std::int32_t> const> texts) const {
  for (auto const& text : texts) {
    if (text.empty() || text.size() > layout_.positions)
      throw std::invalid_argument("a text of " + std::to_string(text.size()) +
                                  " tokens; the model takes 1 to " + std::to_string(layout_.positions));
    for (auto const id : text)
      if (id < 0 || static_cast<std::size_t>(id) >= layout_.words)
        throw std::invalid_argument("token " + std::to_string(id) + " is none of the model's " +
                                    std::to_string(layout_.words));
  }
  std::vector<float> embeddings(texts.size() * layout_.hidden);
  for (std::size_t first = 0; first < texts.size();) {
    std::size_t last = first, rows = 0;
    do rows += texts[last++].size();
    while (last < texts.size() && rows + texts[last].size() <= rows_at_once);
    pass some(*this, texts.subspan(first, last - first));
    for (auto const& each : layers_) some.through(each);
    some.mean(embeddings.data() + first * layout_.hidden);
    first = last;
  }
  return embeddings;
}

std::vector<float> bert::classify(std::span<float const> embedding) const {
  std::vector<float> scores(layout_.classes);
  multiply({embedding.data(), 1, embedding.size()}, {probe_.weight, scores.size(), layout_.hidden},
           layout_.hidden, probe_.bias, {scores.data(), scores.size()});
  soften(scores, 1);
  return scores;
}
