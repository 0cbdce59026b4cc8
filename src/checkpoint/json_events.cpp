#include "checkpoint/json_events.hpp"

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <optional>
#include <utility>

namespace ropeway {
namespace {

namespace json = boost::json;
using json_error = boost::system::error_code;

// Far deeper than any safetensors header; bounds what hostile nesting costs.
constexpr std::size_t max_depth = 32;

// Boost.JSON's side: joins the parts of keys and strings and passes them on.
struct handler {
  static constexpr std::size_t max_object_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_array_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_key_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_string_size = static_cast<std::size_t>(-1);

  json_listener* listener;
  std::string text{};
  bool minus = false, in_number = false;
  std::optional<json_fault> fault{};

  template <class Call>
  bool pass(json_error& ec, Call call) {
    try {
      call();
      return true;
    } catch (json_fault const& refused) {
      fault = refused;
      ec = json::make_error_code(json::error::syntax); // only to stop; `fault` has the words
      return false;
    }
  }
  bool add(json::string_view part) {
    text.append(part.data(), part.size());
    return true;
  }
  std::string whole(json::string_view last) {
    add(last);
    return std::exchange(text, {});
  }
  void number_part(json::string_view part) {
    if (!in_number) minus = !part.empty() && part.front() == '-';
    in_number = true;
  }
  bool signed_number(json::string_view last) {
    number_part(last);
    in_number = false;
    return minus; // also of "-0", which the reference takes for a fraction
  }

  bool on_document_begin(json_error&) { return true; }
  bool on_document_end(json_error&) { return true; }
  bool on_object_begin(json_error& ec) {
    return pass(ec, [&] { listener->begin_object(); });
  }
  bool on_object_end(std::size_t, json_error& ec) {
    return pass(ec, [&] { listener->end_object(); });
  }
  bool on_array_begin(json_error& ec) {
    return pass(ec, [&] { listener->begin_array(); });
  }
  bool on_array_end(std::size_t, json_error& ec) {
    return pass(ec, [&] { listener->end_array(); });
  }
  bool on_key_part(json::string_view part, std::size_t, json_error&) { return add(part); }
  bool on_key(json::string_view last, std::size_t, json_error& ec) {
    return pass(ec, [&] { listener->key(whole(last)); });
  }
  bool on_string_part(json::string_view part, std::size_t, json_error&) { return add(part); }
  bool on_string(json::string_view last, std::size_t, json_error& ec) {
    return pass(ec, [&] { listener->string(whole(last)); });
  }
  bool on_number_part(json::string_view part, json_error&) {
    number_part(part);
    return true;
  }
  bool on_int64(std::int64_t value, json::string_view last, json_error& ec) {
    bool const negative = signed_number(last);
    return pass(ec, [&] {
      if (negative)
        listener->other("a negative number");
      else
        listener->number(static_cast<std::uint64_t>(value));
    });
  }
  bool on_uint64(std::uint64_t value, json::string_view, json_error& ec) {
    in_number = false;
    return pass(ec, [&] { listener->number(value); });
  }
  bool on_double(double, json::string_view, json_error& ec) {
    in_number = false;
    return pass(ec, [&] { listener->other("a number that is no whole number of 64 bits"); });
  }
  bool on_bool(bool value, json_error& ec) {
    return pass(ec, [&] { listener->other(value ? "true" : "false"); });
  }
  bool on_null(json_error& ec) {
    return pass(ec, [&] { listener->other("null"); });
  }
  bool on_comment_part(json::string_view, json_error&) { return true; }
  bool on_comment(json::string_view, json_error&) { return true; }
};

json::parse_options options() {
  json::parse_options result;
  result.max_depth = max_depth;
  return result;
}

} // namespace

struct json_feed::parser {
  parser(json_listener& listener, std::string name)
      : json(options(), handler{.listener = &listener}), label(std::move(name)) {}

  void write(bool more, std::string_view piece) {
    json_error ec;
    std::size_t const used = json.done() ? 0 : json.write_some(more, piece.data(), piece.size(), ec);
    if (ec) fail(ec, consumed + used);
    // What follows the document may only be padding.
    for (std::size_t i = used; i < piece.size(); ++i)
      if (std::string_view(" \t\r\n").find(piece[i]) == std::string_view::npos)
        throw transfer_error(errc::bad_checkpoint, label + " byte " + std::to_string(consumed + i) +
                                                       ": text after the closing brace");
    consumed += piece.size();
  }

  [[noreturn]] void fail(json_error const& ec, std::uint64_t at) {
    auto const& fault = json.handler().fault;
    std::string const where = label + " byte " + std::to_string(at) + ": ";
    if (fault) throw transfer_error(fault->code(), where + fault->what());
    if (ec == json::error::too_deep)
      throw transfer_error(errc::bad_checkpoint,
                           where + "nested more than " + std::to_string(max_depth) + " deep");
    throw transfer_error(errc::bad_checkpoint, where + "no valid JSON (" + ec.message() + ")");
  }

  json::basic_parser<handler> json;
  std::string label;
  std::uint64_t consumed = 0;
};

json_feed::json_feed(json_listener& listener, std::string label)
    : parser_(std::make_unique<parser>(listener, std::move(label))) {}
json_feed::~json_feed() = default;
void json_feed::feed(std::string_view piece) { parser_->write(true, piece); }
void json_feed::finish() { parser_->write(false, ""); }

} // namespace ropeway
