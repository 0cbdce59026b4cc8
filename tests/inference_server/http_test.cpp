// The parser's limits, without a socket. Part of ropeway; Apache-2.0.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "http.hpp"

namespace {

/// Gives the reader some bytes; whether a request is there.
bool give(http::request_reader& to, std::string_view bytes) {
  bool there = false;
  while (!bytes.empty()) {
    auto const room = to.room();
    auto const count = std::min(room.size, bytes.size());
    std::memcpy(room.data, bytes.data(), count);
    there = to.arrived(count);
    bytes.remove_prefix(count);
    if (to.refused()) return false;
  }
  return there;
}

unsigned refused_with(std::string_view bytes, http::limits within = {}) {
  http::request_reader reader(within);
  give(reader, bytes);
  return reader.refused() ? reader.refused()->status : 0;
}

} // namespace

TEST_CASE("a request is found however its bytes arrive") {
  std::string const whole =
      "POST /embed?x=1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer t\r\nContent-Length: 5\r\n\r\nhello";
  for (std::size_t step = 1; step <= whole.size(); ++step) {
    http::request_reader reader;
    CHECK(reader.idle());
    bool there = false;
    for (std::size_t at = 0; at < whole.size(); at += step) {
      REQUIRE_FALSE(there);
      there = give(reader, std::string_view(whole).substr(at, step));
      CHECK_FALSE(reader.idle());
    }
    REQUIRE(there);
    auto const asked = reader.take();
    CHECK(asked.method == "POST");
    CHECK(asked.path == "/embed");
    CHECK(asked.body == "hello");
    CHECK(asked.authorization == "Bearer t");
    CHECK(asked.keep_alive);
    CHECK_FALSE(asked.from_page);
    CHECK(reader.idle());
  }
}

TEST_CASE("requests that arrive together are found one after the other") {
  http::request_reader reader;
  REQUIRE(
      give(reader,
           "GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\nConnection: close\r\nOrigin: http://x\r\n\r\nGET /c"));
  auto const first = reader.take();
  CHECK(first.path == "/a");
  REQUIRE(reader.again());
  auto const second = reader.take();
  CHECK(second.path == "/b");
  CHECK_FALSE(second.keep_alive);
  CHECK(second.from_page);
  CHECK_FALSE(reader.again());
  CHECK_FALSE(reader.idle());
  CHECK_FALSE(reader.refused());
}

TEST_CASE("a body may come in chunks") {
  http::request_reader reader;
  REQUIRE(
      give(reader, "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"));
  CHECK(reader.take().body == "abcde");
}

TEST_CASE("what is too large, or no HTTP, is refused with the status that says so") {
  http::limits small;
  small.header_bytes = 200;
  small.body_bytes = 10;
  std::string const filler(300, 'x');
  CHECK(refused_with("GET / HTTP/1.1\r\nA: " + filler + "\r\n\r\n", small) == 431);
  CHECK(refused_with("GET / HTTP/1.1\r\nA: " + filler, small) == 431); // before its end came
  CHECK(refused_with("GET /" + filler, small) == 431);
  CHECK(refused_with("POST / HTTP/1.1\r\nContent-Length: 11\r\n\r\n", small) == 413); // before the body came
  CHECK(refused_with("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n0123456789", small) == 0);
  CHECK(refused_with("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n0123456789a\r\n", small) ==
        413);
  CHECK(refused_with("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n") == 400);
  CHECK(refused_with("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n") == 400);
  CHECK(refused_with("nonsense\r\n\r\n") == 400);
  CHECK(refused_with(std::string_view("\0\1\2\3\r\n\r\n", 8)) == 400);
  CHECK(refused_with("GET / HTTP/3.0\r\n\r\n") == 400);
  CHECK(refused_with("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n") == 400);
  CHECK(refused_with("POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n") ==
        400); // smuggling
}

TEST_CASE("who waits to be told to go on with the body is told once") {
  http::request_reader reader;
  give(reader, "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  CHECK(reader.wants_continue());
  CHECK_FALSE(reader.wants_continue());
  CHECK(give(reader, "ok"));
}

TEST_CASE("answers say what they are, and can be read back") {
  http::answer made;
  made.status = 405;
  made.body = "{}";
  made.allow = "GET";
  auto const bytes = http::to_bytes(made, false);
  CHECK(bytes.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"));
  CHECK(bytes.find("Connection: close\r\n") != std::string::npos);
  CHECK(bytes.find("Content-Length: 2\r\n") != std::string::npos);
  CHECK(bytes.find("Content-Type: application/json\r\n") != std::string::npos);
  http::answer_reader reader;
  CHECK_FALSE(reader.feed(bytes.substr(0, 30)));
  REQUIRE(reader.feed(bytes.substr(30)));
  auto const read = reader.take();
  CHECK(read.status == 405);
  CHECK(read.body == "{}");
  CHECK(read.allow == "GET");
  CHECK_FALSE(reader.keep_alive());
}
