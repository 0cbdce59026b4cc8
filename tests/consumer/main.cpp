// A program of someone else's: it sees the installed headers and library only, and proves that they work
// together by sending a tensor from itself to itself, and by catching what the library throws.
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

// The same name twice: the library throws from a coroutine of its own, and the exception ends up in ours.
ropeway::awaitable<void> catch_send_failed(ropeway::sender& sender, std::vector<float> const& weights,
                                           bool& caught) {
  std::vector<ropeway::tensor_view> const twice{{"weights", ropeway::dtype::f32, {6}, weights.data()},
                                                {"weights", ropeway::dtype::f32, {6}, weights.data()}};
  try {
    co_await sender.send_weights(1, twice);
  } catch (ropeway::send_failed const& error) {
    caught = error.code() == ropeway::errc::duplicate_name && error.tensor() == "weights" &&
             error.report().version == 1;
  }
  co_await sender.close();
}

// From a plain function, by its own type and by that of its base in the standard library.
bool catch_transfer_error() {
  int caught = 0;
  try {
    ropeway::device const where = ropeway::device::host();
    ropeway::basic_tensor_view<std::byte> view("x", ropeway::dtype::u8, {2, 2}, nullptr, where);
    view.strides({1});
  } catch (ropeway::transfer_error const& error) {
    caught += error.code() == ropeway::errc::invalid_argument && error.tensor() == "x";
  }
  try {
    ropeway::checkpoint::open("/nowhere/at/all.safetensors");
  } catch (std::system_error const& error) {
    caught += dynamic_cast<ropeway::transfer_error const*>(&error) != nullptr;
  }
  return caught == 2;
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
  bool caught = false;
  {
    asio::io_context loop;
    ropeway::sender sender(loop.get_executor(), path);
    asio::co_spawn(loop, catch_send_failed(sender, sent, caught), rethrow);
    loop.run();
  }
  caught = catch_transfer_error() && caught;
  std::filesystem::remove_all(room);
  std::cout << (sent == received ? "equal" : "different") << (caught ? "" : ", and an exception got lost")
            << '\n';
  return sent == received && caught ? 0 : 1;
} catch (std::exception const& error) {
  std::cerr << "consumer: " << error.what() << '\n';
  return 1;
}
