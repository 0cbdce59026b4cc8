// A program of someone else's: it sees the installed headers and library only, and proves that both work together.
#include <asio/io_context.hpp>
#include <cstdio>

#include "ropeway/asio.hpp"
#include "ropeway/error.hpp"
#include "ropeway/tensor.hpp"

namespace {

ropeway::awaitable<void> describe(ropeway::tensor_view tensor, bool& done) {
  auto const bytes = ropeway::byte_size(tensor.type(), tensor.dims());
  done = bytes == 24u && ropeway::to_string(tensor.dims()) == "[2, 3]";
  co_return;
}

} // namespace

int main() {
  float const values[6] = {};
  bool done = false;
  asio::io_context loop;
  ropeway::tensor_view const tensor("weights", ropeway::dtype::f32, {2, 3}, values);
  asio::co_spawn(loop, describe(tensor, done), [](std::exception_ptr) {});
  loop.run();
  std::puts(ropeway::make_error_code(ropeway::errc::busy).message().c_str());
  return done ? 0 : 1;
}
