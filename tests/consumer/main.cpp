// A program of someone else's: it sees the installed headers and library only, and proves that they work
// together by sending a tensor from itself to itself.
#include <stdlib.h>

#include <asio/io_context.hpp>
#include <exception>
#include <filesystem>
#include <iostream>
#include <ropeway/ropeway.hpp>
#include <string>
#include <vector>

namespace {

ropeway::awaitable<void> train(ropeway::sender& sender, std::vector<float> const& weights) {
  std::vector<ropeway::tensor_view> const tensors{{"weights", ropeway::dtype::f32, {2, 3}, weights.data()}};
  co_await sender.wait_for_receivers(1, std::chrono::seconds(20));
  co_await sender.send_weights(7, tensors);
  co_await sender.close();
}

ropeway::awaitable<void> follow(ropeway::receiver& receiver, std::string path, std::vector<float>& weights) {
  ropeway::destinations into;
  into.add({"weights", ropeway::dtype::f32, {2, 3}, weights.data()});
  co_await receiver.connect(path);
  while (auto update = co_await receiver.next_update()) co_await update->load_into(into);
}

void rethrow(std::exception_ptr error) {
  if (error) std::rethrow_exception(error);
}

} // namespace

int main() try {
  char room[] = "/tmp/ropeway-consumer-XXXXXX";
  if (!::mkdtemp(room)) return 1;
  std::string const path = std::string(room) + "/weights.sock";
  std::vector<float> const sent{1, 2, 3, 4, 5, 6};
  std::vector<float> received(sent.size());
  {
    asio::io_context loop;
    ropeway::sender sender(loop.get_executor(), path);
    ropeway::receiver receiver(loop.get_executor());
    asio::co_spawn(loop, train(sender, sent), rethrow);
    asio::co_spawn(loop, follow(receiver, path, received), rethrow);
    loop.run();
  }
  std::filesystem::remove_all(room);
  std::cout << (sent == received ? "equal" : "different") << '\n';
  return sent == received ? 0 : 1;
} catch (std::exception const& error) {
  std::cerr << "consumer: " << error.what() << '\n';
  return 1;
}
