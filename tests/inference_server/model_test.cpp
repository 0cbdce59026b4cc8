// The tokenizer and the forward pass, against an implementation of their own (make_reference.py). Part of
// ropeway; Apache-2.0.
#include <doctest/doctest.h>

#include "compare.hpp"
#include "matmul.hpp"
#include "support/scratch.hpp"

using namespace ropeway::testing;

namespace {

using words = std::vector<std::string>;

std::string joined(words const& list) {
  std::string text;
  for (auto const& one : list) text += (text.empty() ? "" : "|") + one;
  return text;
}
std::string split(std::string_view text) { return joined(tokenizer::words(text)); }

} // namespace

TEST_CASE("words are cleaned, folded and split at punctuation") {
  CHECK(split("Hello, World!") == "hello|,|world|!");
  CHECK(split("  many \t\n spaces\r ") == "many|spaces");
  CHECK(split("it's $5+3 = ~8") == "it|'|s|$|5|+|3|=|~|8");
  CHECK(split("") == "");
  CHECK(split("no\xc2\xa0"
              "break") == "no|break");
}

TEST_CASE("accents go, whether they are part of the letter or stand behind it") {
  CHECK(split("D\u00c9J\u00c0 vu") == "deja|vu");
  CHECK(split("e\u0301 a\u0308\u0323") == "e|a");
  CHECK(split("\u0130stanbul \u1e9e \u03a3") == "istanbul|\u00df|\u03c3");
  CHECK(split("\u0439\u0451") == "\u0438\u0435");
}

TEST_CASE("ideographs are words, Hangul comes apart") {
  CHECK(split("\u6771\u4eac"
              "abc\u6f22") == "\u6771|\u4eac|abc|\u6f22");
  CHECK(split("\ud55c") == "\u1112\u1161\u11ab");
  CHECK(split("\uac00") == "\u1100\u1161");
}

TEST_CASE("controls, private characters and what is no UTF-8 vanish") {
  CHECK(split(std::string_view("a\0b\x07"
                               "c",
                               5)) == "abc");
  CHECK(split("zero\u200bwidth \ufffd \ue000") == "zerowidth");
  CHECK(split("a\x80"
              "b\xff"
              "c\xc3") == "abc"); // lone bytes
  CHECK(split("a\xe2\x82"
              "b") == "ab");                                  // cut short
  CHECK(split("\xc0\xaf\xe0\x80\xaf\xf0\x80\x80\xaf") == ""); // longer than needed
  CHECK(split("\xed\xa0\x80"
              "x") == "x");                 // half a surrogate pair
  CHECK(split("\xf4\x90\x80\x80y") == "y"); // beyond Unicode
}

TEST_CASE("the vocabulary is cut from greedily, and what it lacks is unknown") {
  scratch const folder;
  std::ofstream(folder.file("vocabulary"))
      << "[PAD]\n[UNK]\n[CLS]\n[SEP]\nun\n##aff\n##able\n##a\nunaffa\n\u00e9\n##e\n";
  tokenizer const cut(folder.file("vocabulary"));
  using ids = std::vector<std::int32_t>;
  CHECK(cut.ids("unaffable", 10) == ids{2, 1, 3}); // greedy: "unaffa" leaves "ble", which there is not
  CHECK(cut.ids("unaff", 10) == ids{2, 4, 5, 3});
  CHECK(cut.ids("un un", 10) == ids{2, 4, 4, 3});
  CHECK(cut.ids("une", 10) == ids{2, 4, 10, 3});
  CHECK(cut.ids("xyz", 10) == ids{2, 1, 3});
  CHECK(cut.ids("", 10) == ids{2, 3});
  CHECK(cut.ids("[CLS]", 10) == ids{2, 1, 1, 1, 3}); // a text is only text
  CHECK(cut.ids("un un un un", 5) == ids{2, 4, 4, 4, 3});
  CHECK(cut.ids("unaff unaff", 4) == ids{2, 4, 5, 3});
  CHECK(cut.ids("un", 2) == ids{2, 3});
  CHECK(cut.ids(std::string(101, 'u'), 10) == ids{2, 1, 3});
}

TEST_CASE("a vocabulary without the tokens that frame a text is refused") {
  scratch const folder;
  std::ofstream(folder.file("vocabulary")) << "[UNK]\n[CLS]\n";
  CHECK_THROWS_WITH_AS(tokenizer(folder.file("vocabulary")), doctest::Contains("has no [SEP]"),
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(tokenizer(folder.file("none")), doctest::Contains("can't be read"),
                       std::runtime_error);
}

TEST_CASE("rows times rows, of any size") {
  for (std::size_t const rows : {1U, 3U, 4U, 9U})
    for (std::size_t const columns : {1U, 2U, 5U})
      for (std::size_t const depth : {1U, 7U, 8U, 19U, 64U}) {
        std::vector<float> a(rows * depth), b(columns * depth), bias(columns), into(rows * columns);
        for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i % 13) - 6;
        for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i % 7) - 3;
        for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i) * 0.5F;
        multiply({a.data(), rows, depth}, {b.data(), columns, depth}, depth, bias.data(),
                 {into.data(), columns});
        for (std::size_t i = 0; i < rows; ++i)
          for (std::size_t j = 0; j < columns; ++j) {
            float sum = bias[j];
            for (std::size_t k = 0; k < depth; ++k) sum += a[i * depth + k] * b[j * depth + k];
            REQUIRE(into[i * columns + j] == sum); // small whole numbers: exact in any order
          }
      }
}

TEST_CASE("a small model computes what the reference does") {
  auto const& with = reference().at("tiny").as_object();
  compare(tiny_model(), tokenizer(reference_file("tiny_vocabulary.txt")), with);
}

TEST_CASE("a model that lacks a tensor, or has another shape, is refused by name") {
  auto infos = tiny_model().layout().tensors;
  auto const find = [&](std::string_view name) {
    return std::find_if(infos.begin(), infos.end(), [&](auto const& info) { return info.name == name; });
  };
  SUBCASE("missing") {
    infos.erase(find("encoder.layer.1.output.dense.bias"));
    CHECK_THROWS_WITH_AS(bert_layout::of(infos, 4), "the model has no encoder.layer.1.output.dense.bias",
                         std::invalid_argument);
  }
  SUBCASE("another shape") {
    find("encoder.layer.0.attention.self.key.weight")->dims = {32, 31};
    CHECK_THROWS_WITH_AS(bert_layout::of(infos, 4),
                         doctest::Contains("encoder.layer.0.attention.self.key.weight is F32[32, 31]"),
                         std::invalid_argument);
  }
  SUBCASE("another dtype") {
    find("embeddings.LayerNorm.bias")->type = ropeway::dtype::bf16;
    CHECK_THROWS_WITH_AS(bert_layout::of(infos, 4),
                         doctest::Contains("embeddings.LayerNorm.bias is BF16[32]"), std::invalid_argument);
  }
  SUBCASE("heads") { CHECK_THROWS_AS(bert_layout::of(infos, 5), std::invalid_argument); }
}

TEST_CASE("tokens that the model does not have, and texts that are too long, are refused") {
  auto const model = tiny_model();
  using ids = std::vector<std::vector<std::int32_t>>;
  CHECK_THROWS_AS(model.embed(ids{{2, 100000, 3}}), std::invalid_argument);
  CHECK_THROWS_AS(model.embed(ids{{2, -1, 3}}), std::invalid_argument);
  CHECK_THROWS_AS(model.embed(ids{{}}), std::invalid_argument);
  CHECK_THROWS_AS(model.embed(ids{std::vector<std::int32_t>(41, 5)}), std::invalid_argument);
  CHECK(model.embed(ids{}).empty());
}
