// JSON as a stream of events, so that a header of any size is read in bounded memory and duplicate keys are
// seen. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "ropeway/error.hpp"

namespace ropeway {

/// What a listener throws when the JSON is well-formed but not what it expects; `json_feed` adds the
/// position.
class json_fault : public std::runtime_error {
 public:
  explicit json_fault(std::string const& why, errc code = errc::bad_checkpoint)
      : std::runtime_error(why), code_(code) {}
  errc code() const noexcept { return code_; }

 private:
  errc code_;
};

/// Hears one JSON document. Keys and strings come whole and unescaped.
class json_listener {
 public:
  virtual ~json_listener() = default;
  virtual void begin_object() = 0;
  virtual void end_object() = 0;
  virtual void begin_array() = 0;
  virtual void end_array() = 0;
  virtual void key(std::string&& text) = 0;
  virtual void string(std::string&& text) = 0;
  /// A whole number from 0 to 2^64 - 1, spelled as one.
  virtual void number(std::uint64_t value) = 0;
  /// Any other value; `what` says which kind, for a message ("null", "a negative number", ...).
  virtual void other(std::string_view what) = 0;
};

/// Takes the text of one JSON document piece by piece. Throws `transfer_error` for text that is no JSON and
/// for what the listener refuses; the message begins with `label` and names the byte.
class json_feed {
 public:
  json_feed(json_listener& listener, std::string label);
  ~json_feed();
  void feed(std::string_view piece);
  /// No more text comes.
  void finish();

 private:
  struct parser;
  std::unique_ptr<parser> parser_;
};

} // namespace ropeway
