#include "http.hpp"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/serializer.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstring>
#include <stdexcept>

namespace http {
namespace {

namespace beast = boost::beast::http;

refusal refused_for(boost::system::error_code const& error) {
  if (error == beast::error::header_limit) return {431, "the header is too large"};
  if (error == beast::error::body_limit || error == beast::error::buffer_overflow)
    return {413, "the body is too large"};
  return {400, error.message()};
}

/// The whole message, from a serializer that believes it writes to a socket.
template <class Message>
std::string serialised(Message& message) {
  beast::serializer<Message::is_request::value, beast::string_body> serializer(message);
  std::string bytes;
  boost::system::error_code error;
  do {
    serializer.next(error, [&](boost::system::error_code&, auto const& buffers) {
      std::size_t count = 0;
      for (auto const& part : boost::beast::buffers_range_ref(buffers)) {
        bytes.append(static_cast<char const*>(part.data()), part.size());
        count += part.size();
      }
      serializer.consume(count);
    });
  } while (!error && !serializer.is_done());
  if (error) throw std::runtime_error("HTTP: " + error.message());
  return bytes;
}

} // namespace

class request_reader::parser : public beast::request_parser<beast::string_body> {
 public:
  explicit parser(limits const& within) {
    eager(true);
    header_limit(within.header_bytes);
    body_limit(within.body_bytes);
  }
  bool begun = false, continued = false;
};

request_reader::request_reader(limits within) : within_(within), parser_(std::make_unique<parser>(within)) {}
request_reader::~request_reader() = default;

request_reader::space request_reader::room() {
  constexpr std::size_t step = 16 * 1024;
  if (buffer_.size() < held_ + step) buffer_.resize(held_ + step);
  return {buffer_.data() + held_, buffer_.size() - held_};
}

bool request_reader::arrived(std::size_t bytes) {
  held_ += bytes;
  while (!refused_ && held_ > 0 && !parser_->is_done()) {
    boost::system::error_code error;
    auto const used = parser_->put(boost::asio::const_buffer(buffer_.data(), held_), error);
    std::memmove(buffer_.data(), buffer_.data() + used, held_ - used);
    held_ -= used;
    if (used > 0) parser_->begun = true;
    // A header is parsed once it is whole; until then it waits in the buffer, which the parser's limit
    // bounds.
    if (error == beast::error::need_more) break;
    if (error) refused_ = refused_for(error);
  }
  return !refused_ && parser_->is_done();
}

bool request_reader::idle() const noexcept { return held_ == 0 && !parser_->begun; }

bool request_reader::wants_continue() {
  if (!parser_->is_header_done() || parser_->is_done() || parser_->continued) return false;
  parser_->continued = true;
  return boost::beast::iequals(parser_->get()[beast::field::expect], "100-continue");
}

request request_reader::take() {
  auto message = parser_->release();
  request made;
  made.method = std::string(message.method_string());
  made.path = std::string(message.target().substr(0, message.target().find('?')));
  made.body = std::move(message.body());
  made.authorization = std::string(message[beast::field::authorization]);
  made.from_page = message.find(beast::field::origin) != message.end();
  made.keep_alive = message.keep_alive();
  parser_ = std::make_unique<parser>(within_);
  return made;
}

std::string to_bytes(answer const& what, bool keep_alive) {
  beast::response<beast::string_body> message(beast::int_to_status(what.status), 11);
  message.set(beast::field::content_type, what.type);
  if (!what.allow.empty()) message.set(beast::field::allow, what.allow);
  if (what.status == 401) message.set(beast::field::www_authenticate, "Bearer");
  message.body() = what.body;
  message.keep_alive(keep_alive);
  message.prepare_payload();
  return serialised(message);
}

class answer_reader::parser : public beast::response_parser<beast::string_body> {
 public:
  parser() {
    eager(true);
    body_limit(std::uint64_t(256) << 20);
  }
};

answer_reader::answer_reader() : parser_(std::make_unique<parser>()) {}
answer_reader::answer_reader(answer_reader&&) noexcept = default;
answer_reader::~answer_reader() = default;

bool answer_reader::feed(std::string_view bytes) {
  buffer_ += bytes;
  while (!buffer_.empty() && !parser_->is_done()) {
    boost::system::error_code error;
    auto const used = parser_->put(boost::asio::const_buffer(buffer_.data(), buffer_.size()), error);
    buffer_.erase(0, used);
    if (error == beast::error::need_more) break;
    if (error) throw std::runtime_error("HTTP: " + error.message());
  }
  return parser_->is_done();
}

answer answer_reader::take() {
  keep_alive_ = parser_->keep_alive();
  auto message = parser_->release();
  answer made;
  made.status = message.result_int();
  made.type = std::string(message[beast::field::content_type]);
  made.allow = std::string(message[beast::field::allow]);
  made.body = std::move(message.body());
  parser_ = std::make_unique<parser>();
  return made;
}

std::string to_bytes(std::string_view method, std::string_view path, std::string_view body,
                     std::string_view more_headers) {
  std::string bytes(method);
  bytes.append(" ").append(path).append(" HTTP/1.1\r\nHost: localhost\r\n").append(more_headers);
  if (!body.empty() || method != "GET") {
    bytes.append("Content-Type: application/json\r\nContent-Length: ").append(std::to_string(body.size()));
    bytes.append("\r\n");
  }
  return bytes.append("\r\n").append(body);
}

} // namespace http
