// HTTP/1.1 as bytes in and bytes out: Boost.Beast's parser and serializer, without its I/O. A sample of
// ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace http {

class limits {
 public:
  std::uint32_t header_bytes = 16 * 1024;
  std::uint64_t body_bytes = 1024 * 1024;
};

struct request {
  std::string method, path, body; ///< the path without its query
  std::string authorization;      ///< that header's value, or empty
  bool from_page = false;         ///< a browser says that a web page asks (there is an Origin)
  bool keep_alive = true;
};

struct answer {
  unsigned status = 200;
  std::string body;
  std::string type = "application/json";
  std::string allow; ///< with 405: which method there is
};
std::string to_bytes(answer const& what, bool keep_alive);

/// What is wrong with a message, as the status to answer with.
struct refusal {
  unsigned status;
  std::string why;
};

/// Finds requests in a stream of bytes, one after the other. Bounded: a peer makes it hold at most the limits
/// and what `room` offers.
class request_reader {
 public:
  explicit request_reader(limits within = {});
  ~request_reader();

  /// Where the next bytes of the stream go; say with `arrived` how many did.
  struct space {
    char* data;
    std::size_t size;
  };
  space room();
  /// Both give whether a whole request is there; `again` looks at what came with the one before.
  bool arrived(std::size_t bytes);
  bool again() { return arrived(0); }
  /// Set once the stream makes no sense; nothing more is read then.
  std::optional<refusal> const& refused() const noexcept { return refused_; }
  /// Whether nothing of a next request has come: the peer may close without loss.
  bool idle() const noexcept;
  /// True once a request: its sender waits for "100 Continue" before it sends the body.
  bool wants_continue();
  /// The request that is there; then the next one is looked for.
  request take();

 private:
  class parser;
  limits within_;
  std::unique_ptr<parser> parser_;
  std::string buffer_; // what arrived and was not parsed yet, then room
  std::size_t held_ = 0;
  std::optional<refusal> refused_;
};

/// The client's side of it: finds answers. For the load generator and the tests.
class answer_reader {
 public:
  answer_reader();
  answer_reader(answer_reader&&) noexcept;
  ~answer_reader();
  /// Takes bytes of the stream; gives whether a whole answer is there. Throws std::runtime_error for what is
  /// no HTTP.
  bool feed(std::string_view bytes);
  answer take();
  /// Whether the server keeps the connection after the answer that was taken last.
  bool keep_alive() const noexcept { return keep_alive_; }

 private:
  class parser;
  std::unique_ptr<parser> parser_;
  std::string buffer_;
  bool keep_alive_ = true;
};
std::string to_bytes(std::string_view method, std::string_view path, std::string_view body,
                     std::string_view more_headers = {});

} // namespace http
