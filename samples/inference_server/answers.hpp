// What is computed from one version of the weights, and the memory of both. A sample of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <ropeway/shadow.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bert.hpp"
#include "tokenizer.hpp"

/// Ends a request with another answer than 200.
class problem : public std::runtime_error {
 public:
  problem(unsigned status, std::string const& why) : std::runtime_error(why), status_(status) {}
  unsigned status() const noexcept { return status_; }

 private:
  unsigned status_;
};

/// Both sets of a model's memory, and where updates go.
class weights {
 public:
  explicit weights(bert_layout const& layout)
      : sets{bert(layout), bert(layout)}, into(places_in(sets[0]), places_in(sets[1])) {}

  std::array<bert, 2> sets;
  ropeway::shadow_destinations into;
  /// Which load wrote each set last; no two loads of a server have the same number. Loop only.
  std::array<std::uint64_t, 2> load{};
  /// The one that the next update arrives in.
  std::size_t not_live() const {
    auto const live = into.lease();
    return live ? 1 - live.set() : 0;
  }

 private:
  static ropeway::destinations places_in(bert& of) {
    ropeway::destinations places;
    for (auto const& view : of.mutable_views()) places.add(view);
    places.allow_unplaced(); // what no embedding needs
    return places;
  }
};

/// One whole version that stays as it is while this lives.
struct reading {
  std::shared_ptr<weights> of; // before the lease, which ends first
  ropeway::weights_lease lease;
  std::uint64_t load = 0;
  bert const& model() const { return of->sets[lease.set()]; }
};

using texts = std::vector<std::shared_ptr<std::string const>>;

/// The embeddings of the indexed texts by one load, kept for the next search.
class index_rows {
 public:
  /// Embeds at most `tokens` tokens' worth of texts that are missing. One row for each text once none is;
  /// before that nothing. `epoch` changes when texts are taken out.
  std::optional<std::vector<float>> advance(reading const& from, std::uint64_t epoch, texts const& of,
                                            tokenizer const& cut, std::size_t longest, std::size_t tokens);

 private:
  std::mutex mutex_;
  std::pair<std::uint64_t, std::uint64_t> key_{};
  std::vector<float> rows_;
};

/// The bodies of answers, each wholly from the version that it names. Any thread.
class answers {
 public:
  /// Texts are cut off after `longest` tokens; one answer reads its version for `tokens` tokens at most.
  answers(std::filesystem::path const& vocabulary, std::size_t longest, std::size_t tokens)
      : tokenizer_(vocabulary), longest_(longest), tokens_(tokens) {}

  std::size_t words() const noexcept { return tokenizer_.size(); }
  std::string embed(reading const& from, texts const& of) const;
  std::string classify(reading const& from, texts const& of) const;
  /// Empty while texts are left to be embedded with this version: ask again.
  std::string search(reading const& from, std::string const& query, std::size_t top, texts const& among,
                     std::uint64_t epoch);

 private:
  std::size_t longest(bert const& model) const;
  std::vector<std::vector<std::int32_t>> ids(bert const& model, texts const& of) const;

  tokenizer const tokenizer_;
  std::size_t const longest_, tokens_;
  index_rows index_rows_;
};
