// Text to token ids as BERT's uncased models want them. A sample of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

/// WordPiece over a vocabulary file of one token a line, whose line numbers are the ids.
///
/// Text is cleaned (controls go, white space is white space), CJK ideographs become words, accents are taken
/// off (NFD), letters become lower case, punctuation is split off; then each word is cut greedily into the
/// longest pieces that the vocabulary has. Bytes that are no UTF-8 are dropped. Const members may be called
/// from any thread.
class tokenizer {
 public:
  /// Throws std::runtime_error if the file can't be read, or lacks [UNK], [CLS] or [SEP].
  explicit tokenizer(std::filesystem::path const& vocabulary);

  /// [CLS], the pieces, [SEP]; pieces beyond `longest` ids are left out. `longest` is at least 2.
  std::vector<std::int32_t> ids(std::string_view text, std::size_t longest) const;
  /// What the basic tokenizer makes of a text: its words, before they are cut.
  static std::vector<std::string> words(std::string_view text);
  std::size_t size() const noexcept { return ids_.size(); }

 private:
  struct hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const noexcept {
      return std::hash<std::string_view>()(text);
    }
  };
  void cut(std::string_view word, std::vector<std::int32_t>& into) const;
  std::unordered_map<std::string, std::int32_t, hash, std::equal_to<>> ids_;
  std::int32_t unknown_ = 0, first_ = 0, last_ = 0;
};
