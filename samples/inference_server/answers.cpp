#include "answers.hpp"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <numeric>
#include <span>

namespace {

/// The shortest text that reads as the same float.
void append(std::string& to, float value) {
  std::array<char, 32> text{};
  auto const end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  to.append(text.data(), end);
}
void append(std::string& to, std::span<float const> values) {
  char before = '[';
  for (auto const value : values) to += before, append(to, value), before = ',';
  if (values.empty()) to += '[';
  to += ']';
}

std::string begin(reading const& from) { return "{\"version\":" + std::to_string(from.lease.version()); }

} // namespace

std::optional<std::vector<float>> index_rows::advance(reading const& from, std::uint64_t epoch,
                                                      texts const& of, tokenizer const& cut,
                                                      std::size_t longest, std::size_t tokens) {
  std::scoped_lock lock(mutex_);
  auto const hidden = from.model().layout().hidden;
  std::pair const key(from.load, epoch);
  if (key_ != key) rows_.clear(), key_ = key; // of another version: not a row of it is used
  std::vector<std::vector<std::int32_t>> ids;
  std::size_t taken = 0;
  for (std::size_t i = rows_.size() / hidden; i < of.size() && (ids.empty() || taken < tokens); ++i) {
    ids.push_back(cut.ids(*of[i], longest));
    taken += ids.back().size();
  }
  auto const more = from.model().embed(ids);
  rows_.insert(rows_.end(), more.begin(), more.end());
  if (rows_.size() < of.size() * hidden) return std::nullopt;
  return std::vector<float>(rows_.begin(), rows_.begin() + static_cast<std::ptrdiff_t>(of.size() * hidden));
}

std::size_t answers::longest(bert const& model) const { return std::min(longest_, model.layout().positions); }
std::vector<std::vector<std::int32_t>> answers::ids(bert const& model, texts const& of) const {
  std::vector<std::vector<std::int32_t>> made;
  std::size_t total = 0;
  for (auto const& text : of) {
    made.push_back(tokenizer_.ids(*text, longest(model)));
    total += made.back().size();
  }
  if (total > tokens_)
    throw problem(413, std::to_string(total) + " tokens; a request may have " + std::to_string(tokens_));
  return made;
}
std::string answers::embed(reading const& from, texts const& of) const {
  auto const rows = from.model().embed(ids(from.model(), of));
  auto const hidden = from.model().layout().hidden;
  std::string body = begin(from) + ",\"embeddings\":[";
  for (std::size_t i = 0; i < of.size(); ++i) {
    if (i > 0) body += ',';
    append(body, std::span(rows).subspan(i * hidden, hidden));
  }
  return body + "]}\n";
}

std::string answers::classify(reading const& from, texts const& of) const {
  auto const& layout = from.model().layout();
  if (layout.classes == 0) throw problem(409, "this version has no classifier (probe.weight and probe.bias)");
  auto const rows = from.model().embed(ids(from.model(), of));
  std::string labels, scores;
  for (std::size_t i = 0; i < of.size(); ++i) {
    auto const each = from.model().classify(std::span(rows).subspan(i * layout.hidden, layout.hidden));
    if (i > 0) labels += ',', scores += ',';
    labels += std::to_string(std::max_element(each.begin(), each.end()) - each.begin());
    append(scores, each);
  }
  return begin(from) + ",\"labels\":[" + labels + "],\"scores\":[" + scores + "]}\n";
}

std::string answers::search(reading const& from, std::string const& query, std::size_t top,
                            texts const& among, std::uint64_t epoch) {
  auto const& model = from.model();
  auto const hidden = model.layout().hidden;
  auto const whole = index_rows_.advance(from, epoch, among, tokenizer_, longest(model), tokens_);
  if (!whole) return {};
  auto const& rows = *whole;
  std::vector<std::vector<std::int32_t>> const asked{tokenizer_.ids(query, longest(model))};
  auto const wanted = model.embed(asked);
  std::vector<std::pair<float, std::size_t>> near;
  for (std::size_t i = 0; i < among.size(); ++i)
    near.emplace_back(std::inner_product(wanted.begin(), wanted.end(),
                                         rows.begin() + static_cast<std::ptrdiff_t>(i * hidden), 0.0F),
                      i);
  auto const count = std::min(top, near.size());
  std::partial_sort(near.begin(), near.begin() + static_cast<std::ptrdiff_t>(count), near.end(),
                    [](auto const& a, auto const& b) { return a.first > b.first; });
  std::string body = begin(from) + ",\"matches\":[";
  for (std::size_t i = 0; i < count; ++i) {
    body += std::string(i > 0 ? "," : "") + "{\"index\":" + std::to_string(near[i].second) + ",\"score\":";
    append(body, near[i].first);
    body += ",\"text\":" + boost::json::serialize(boost::json::string(*among[near[i].second])) + "}";
  }
  return body + "]}\n";
}
