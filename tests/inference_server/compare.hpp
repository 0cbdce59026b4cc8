// A model and a tokenizer against what make_reference.py has written. Part of ropeway; Apache-2.0.
#pragma once
#include <cmath>
#include <doctest/doctest.h>

#include "reference.hpp"

namespace ropeway::testing {

inline void compare(bert const& model, tokenizer const& cut, boost::json::object const& with) {
  auto const& texts = reference().at("texts").as_array();
  auto const longest = with.at("longest").to_number<std::size_t>();
  for (std::size_t i = 0; i < texts.size(); ++i) {
    auto const text = std::string(texts[i].as_string());
    CAPTURE(text);
    CHECK(cut.ids(text, longest) == numbers<std::int32_t>(with.at("ids").as_array()[i]));
  }
  // All at once: what a text becomes must not depend on the others.
  std::vector<std::vector<std::int32_t>> ids;
  auto const& expected = with.at("embeddings").as_array();
  for (std::size_t i = 0; i < expected.size(); ++i)
    ids.push_back(numbers<std::int32_t>(with.at("ids").as_array()[i]));
  auto const rows = model.embed(ids);
  auto const hidden = model.layout().hidden;
  REQUIRE(rows.size() == expected.size() * hidden);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    auto const right = numbers<float>(expected[i]);
    float product = 0, most = 0;
    for (std::size_t k = 0; k < hidden; ++k) {
      product += right[k] * rows[i * hidden + k];
      most = std::max(most, std::abs(right[k] - rows[i * hidden + k]));
    }
    CAPTURE(i);
    CHECK(product >= 0.9999F);
    CHECK(most <= 1e-4F);
    // The same alone.
    auto const alone = model.embed(std::span(ids).subspan(i, 1));
    for (std::size_t k = 0; k < hidden; ++k) CHECK(std::abs(alone[k] - rows[i * hidden + k]) <= 1e-5F);
  }
}

} // namespace ropeway::testing
