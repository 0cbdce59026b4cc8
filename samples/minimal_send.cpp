// A trainer in the fewest words: three versions of a small model for whoever connects. minimal_receive.cpp is
// the other side. Run: minimal_send /tmp/me/weights.sock (the directory is made; it must belong to you
// alone).
#include <algorithm>
#include <asio/io_context.hpp>
#include <iostream>
#include <ropeway/ropeway.hpp>
#include <vector>

ropeway::awaitable<void> train(ropeway::sender& sender) {
  std::vector<float> weight(1024 * 1024), bias(1024);
  std::vector<ropeway::tensor_view> const tensors{
      {"layer.weight", ropeway::dtype::f32, {1024, 1024}, weight.data()},
      {"layer.bias", ropeway::dtype::f32, {1024}, bias.data()}};
  co_await sender.wait_for_receivers(1, std::chrono::seconds(60));
  for (std::uint64_t version = 1; version <= 3; ++version) {
    std::fill(weight.begin(), weight.end(), static_cast<float>(version)); // a training step
    ropeway::send_report const report = co_await sender.send_weights(version, tensors);
    std::cout << "sent version " << version << " to " << report.receivers.size() << " receiver(s)\n";
  }
  co_await sender.close();
}

int main(int argc, char** argv) try {
  if (argc != 2) throw std::invalid_argument("usage: minimal_send SOCKET");
  asio::io_context loop;
  ropeway::sender sender(loop.get_executor(), argv[1]);
  asio::co_spawn(loop, train(sender), [](std::exception_ptr error) {
    if (error) std::rethrow_exception(error);
  });
  loop.run();
} catch (std::exception const& error) {
  std::cerr << "minimal_send: " << error.what() << '\n';
  return 1;
}
