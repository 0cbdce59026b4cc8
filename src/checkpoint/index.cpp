#include "checkpoint/index.hpp"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "checkpoint/header.hpp"
#include "checkpoint/input_file.hpp"
#include "checkpoint/json_events.hpp"
#include "checkpoint/text.hpp"

namespace ropeway {
namespace {

class index_listener : public json_listener {
 public:
  shard_index index;

  void begin_object() override {
    if (place_ == place::nothing)
      place_ = place::top;
    else if (place_ == place::map_expected)
      place_ = place::map;
    else
      foreign("an object", 1);
  }
  void end_object() override {
    if (place_ == place::foreign)
      leave();
    else
      place_ = place_ == place::map ? place::top : place::nothing;
  }
  void begin_array() override { foreign("a list", 1); }
  void end_array() override { leave(); }
  void key(std::string&& text) override {
    if (place_ == place::map) {
      if (index.where.contains(text)) throw json_fault("tensor " + in_quotes(text) + " is mapped twice");
      name_ = std::move(text);
    } else if (place_ == place::top) {
      bool const map = text == "weight_map";
      if (map && std::exchange(has_map_, true)) throw json_fault("weight_map appears twice");
      place_ = map ? place::map_expected : place::foreign;
    }
  }
  void string(std::string&& text) override {
    if (place_ != place::map) return foreign("a string", 0);
    if (!is_plain(text))
      throw json_fault("tensor " + in_quotes(name_) + " is mapped to " + in_quotes(text) +
                       ", which is not the plain name of a file beside the index");
    auto const [file, added] = index.files.try_emplace(std::move(text), 0);
    ++file->second;
    index.where.emplace(std::move(name_), &file->first);
  }
  void number(std::uint64_t) override { foreign("a number", 0); }
  void other(std::string_view what) override { foreign(what, 0); }
  bool has_map() const noexcept { return has_map_; }

 private:
  enum class place { nothing, top, map_expected, map, foreign };

  static bool is_plain(std::string_view name) {
    return !name.empty() && name != "." && name != ".." && name.size() <= 255 &&
           name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
  }
  // A value that is none of ours, or in a place where one of ours must be.
  void foreign(std::string_view what, std::size_t opened) {
    if (place_ == place::nothing)
      throw json_fault("the index is " + std::string(what) + "; it must be an object");
    if (place_ == place::map_expected)
      throw json_fault("weight_map is " + std::string(what) + "; it must be an object");
    if (place_ == place::map)
      throw json_fault("tensor " + in_quotes(name_) + " is mapped to " + std::string(what) +
                       "; it must be the name of a file");
    depth_ += opened;
    if (depth_ == 0) place_ = place::top;
  }
  void leave() {
    if (--depth_ == 0) place_ = place::top;
  }

  place place_ = place::nothing;
  bool has_map_ = false;
  std::size_t depth_ = 0;
  std::string name_;
};

} // namespace

shard_index read_index(input_file const& file) {
  std::string const who = label(file.path());
  if (file.size() > max_header_size)
    throw transfer_error(errc::bad_checkpoint, who + ": an index of " + std::to_string(file.size()) +
                                                   " bytes; at most " + std::to_string(max_header_size) +
                                                   " are read");
  index_listener listener;
  json_feed feed(listener, who + ":");
  std::vector<char> piece(64 * 1024);
  for (std::uint64_t done = 0; done < file.size();) {
    auto const now = static_cast<std::size_t>(std::min<std::uint64_t>(file.size() - done, piece.size()));
    file.read_exactly(done, std::span(piece).first(now));
    feed.feed({piece.data(), now});
    done += now;
  }
  feed.finish();
  if (!listener.has_map()) throw transfer_error(errc::bad_checkpoint, who + ": the index has no weight_map");
  return std::move(listener.index);
}

} // namespace ropeway
