#include "tokenizer.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <utility>

#include "unicode_tables.hpp"

namespace {

constexpr char32_t no_character = 0xfffd; // dropped, like whatever is no UTF-8

template <std::size_t N>
bool in(unicode::range const (&ranges)[N], char32_t code) {
  auto const* const after = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                             [](char32_t c, auto const& r) { return c < r.first; });
  return after != std::begin(ranges) && code <= std::prev(after)->last;
}

bool is_ideograph(char32_t c) {
  constexpr unicode::range blocks[] = {{0x3400, 0x4dbf},   {0x4e00, 0x9fff},   {0xf900, 0xfaff},
                                       {0x20000, 0x2a6df}, {0x2a700, 0x2b73f}, {0x2b740, 0x2b81f},
                                       {0x2b820, 0x2ceaf}, {0x2f800, 0x2fa1f}};
  return in(blocks, c);
}

/// Takes one character off the front.
char32_t next(std::string_view& text) {
  auto const lead = static_cast<unsigned char>(text.front());
  text.remove_prefix(1);
  if (lead < 0x80) return lead;
  int more = 0;
  char32_t code = 0;
  if (lead >= 0xc2 && lead <= 0xdf) {
    more = 1, code = lead & 0x1fU;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    more = 2, code = lead & 0x0fU;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    more = 3, code = lead & 0x07U;
  } else {
    return no_character;
  }
  for (int i = 0; i < more; ++i) {
    if (text.empty() || (static_cast<unsigned char>(text.front()) & 0xc0U) != 0x80) return no_character;
    code = code << 6 | (static_cast<unsigned char>(text.front()) & 0x3fU);
    text.remove_prefix(1);
  }
  bool const longer_than_needed = (more == 2 && code < 0x800) || (more == 3 && code < 0x10000);
  bool const surrogate = code >= 0xd800 && code <= 0xdfff;
  return longer_than_needed || surrogate || code > 0x10ffff ? no_character : code;
}

void append(char32_t c, std::string& to) {
  auto const byte = [&](char32_t value) { to.push_back(static_cast<char>(value)); };
  if (c < 0x80) {
    byte(c);
  } else if (c < 0x800) {
    byte(0xc0 | c >> 6), byte(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    byte(0xe0 | c >> 12), byte(0x80 | (c >> 6 & 0x3f)), byte(0x80 | (c & 0x3f));
  } else {
    byte(0xf0 | c >> 18), byte(0x80 | (c >> 12 & 0x3f)), byte(0x80 | (c >> 6 & 0x3f)),
        byte(0x80 | (c & 0x3f));
  }
}

/// What a character is without its accents and in lower case: one to three characters.
class fold {
 public:
  explicit fold(char32_t c) {
    constexpr char32_t syllables = 0xac00, leads = 0x1100, vowels = 0x1161, tails = 0x11a7;
    if (c < 0x80) {
      add(c >= 'A' && c <= 'Z' ? c + 32 : c);
    } else if (c >= syllables && c < syllables + 11172) { // Hangul comes apart by arithmetic
      char32_t const at = c - syllables;
      add(leads + at / 588), add(vowels + at % 588 / 28);
      if (at % 28 != 0) add(tails + at % 28);
    } else {
      look_up(c);
    }
  }
  std::span<char32_t const> characters() const { return {to_, count_}; }

 private:
  void look_up(char32_t c) {
    auto const* const many =
        std::lower_bound(std::begin(unicode::long_folds), std::end(unicode::long_folds), c,
                         [](auto const& row, char32_t code) { return row.from < code; });
    if (many != std::end(unicode::long_folds) && many->from == c) {
      for (auto const one : many->to)
        if (one != 0) add(one);
      return;
    }
    auto const* const after =
        std::upper_bound(std::begin(unicode::folds), std::end(unicode::folds), c,
                         [](char32_t code, auto const& row) { return code < row.first; });
    if (after != std::begin(unicode::folds)) {
      auto const& run = *std::prev(after);
      if (c <= run.last && (c - run.first) % run.step == 0)
        return add(static_cast<char32_t>(static_cast<std::int64_t>(c) + run.offset));
    }
    add(c);
  }
  void add(char32_t c) { to_[count_++] = c; }
  char32_t to_[3] = {};
  std::size_t count_ = 0;
};

constexpr std::size_t longest_word = 100; // characters; a longer one is unknown

std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80; }));
}

} // namespace

tokenizer::tokenizer(std::filesystem::path const& vocabulary) {
  std::ifstream file(vocabulary);
  if (!file) throw std::runtime_error("the vocabulary " + vocabulary.string() + " can't be read");
  std::int32_t id = 0;
  for (std::string line; std::getline(file, line); ++id) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    ids_.emplace(std::move(line), id); // of a token that is there twice, the first counts
  }
  auto const special = [&](char const* name) {
    auto const found = ids_.find(name);
    if (found == ids_.end())
      throw std::runtime_error("the vocabulary " + vocabulary.string() + " has no " + name);
    return found->second;
  };
  unknown_ = special("[UNK]"), first_ = special("[CLS]"), last_ = special("[SEP]");
}

std::vector<std::string> tokenizer::words(std::string_view text) {
  std::vector<std::string> found;
  std::string word;
  auto const end_word = [&] {
    if (!word.empty()) found.push_back(std::exchange(word, {}));
  };
  while (!text.empty()) {
    char32_t const c = next(text);
    if (in(unicode::dropped, c)) continue;
    if (in(unicode::spaces, c)) {
      end_word();
      continue;
    }
    bool const alone = is_ideograph(c);
    if (alone) end_word();
    fold const folded(c);
    for (char32_t const small : folded.characters()) {
      bool const mark = in(unicode::punctuation, small);
      if (mark) end_word();
      append(small, word);
      if (mark) end_word();
    }
    if (alone) end_word();
  }
  end_word();
  return found;
}

void tokenizer::cut(std::string_view word, std::vector<std::int32_t>& into) const {
  auto const before = into.size();
  if (characters(word) > longest_word) return into.push_back(unknown_);
  std::string piece;
  for (std::size_t at = 0; at < word.size();) {
    std::size_t end = word.size();
    for (; end > at; --end) {
      bool const inside_character =
          end < word.size() && (static_cast<unsigned char>(word[end]) & 0xc0U) == 0x80;
      if (inside_character) continue;
      piece = at == 0 ? "" : "##";
      piece += word.substr(at, end - at);
      auto const known = ids_.find(piece);
      if (known == ids_.end()) continue;
      into.push_back(known->second);
      break;
    }
    if (end == at) { // one piece that there is not makes the whole word unknown
      into.resize(before);
      return into.push_back(unknown_);
    }
    at = end;
  }
}

std::vector<std::int32_t> tokenizer::ids(std::string_view text, std::size_t longest) const {
  std::vector<std::int32_t> found{first_};
  for (auto const& word : words(text)) {
    if (found.size() + 1 >= longest) break;
    cut(word, found);
  }
  if (found.size() + 1 > longest) found.resize(longest - 1);
  found.push_back(last_);
  return found;
}
