// A server in the fewest words: takes every version into its own memory. minimal_send.cpp is the other side.
// Run: minimal_receive /tmp/me/weights.sock (it waits some seconds for the sender to appear).
#include <asio/io_context.hpp>
#include <iostream>
#include <ropeway/ropeway.hpp>
#include <vector>

ropeway::awaitable<void> follow(ropeway::receiver& receiver, std::string path) {
  std::vector<float> weight(1024 * 1024), bias(1024);
  ropeway::destinations into;
  into.add({"layer.weight", ropeway::dtype::f32, {1024, 1024}, weight.data()});
  into.add({"layer.bias", ropeway::dtype::f32, {1024}, bias.data()});
  co_await receiver.connect(path);
  while (auto update = co_await receiver.next_update()) { // nothing after the sender's goodbye
    ropeway::load_report const report = co_await update->load_into(into);
    std::cout << "holds version " << report.version << ", weight[0] = " << weight[0] << '\n';
  }
}

int main(int argc, char** argv) try {
  if (argc != 2) throw std::invalid_argument("usage: minimal_receive SOCKET");
  asio::io_context loop;
  ropeway::receiver receiver(loop.get_executor());
  asio::co_spawn(loop, follow(receiver, argv[1]), [](std::exception_ptr error) {
    if (error) std::rethrow_exception(error);
  });
  loop.run();
} catch (std::exception const& error) {
  std::cerr << "minimal_receive: " << error.what() << '\n';
  return 1;
}
