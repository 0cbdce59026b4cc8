// `ropeway verify` from outside: checkpoints against each other, and against a sender and its receivers.
// Part of ropeway; Apache-2.0.
#include <doctest/doctest.h>

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/use_future.hpp>
#include <boost/json.hpp>
#include <csignal>
#include <future>
#include <memory>
#include <optional>
#include <thread>

#include "program.hpp"
#include "ropeway/checkpoint_writer.hpp"
#include "ropeway/sender.hpp"
#include "support/scratch.hpp"

using namespace ropeway;
using testing::ended;
using testing::program;
using testing::scratch;

namespace {

std::vector<tensor_info> const tensors{{"up", dtype::bf16, {300, 700}}, {"down", dtype::f32, {70}}};

/// Bytes of both, one behind the other.
std::vector<std::byte> bytes_of(unsigned seed) {
  std::vector<std::byte> all(300 * 700 * 2 + 70 * 4);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::byte>(i * 7 + i / 251 + seed);
  return all;
}

void write(std::string const& path, std::vector<std::byte> const& bytes,
           std::vector<tensor_info> const& infos = tensors) {
  checkpoint_writer writer(path, infos);
  std::size_t at = 0;
  for (std::size_t i = 0; i < infos.size(); ++i) {
    auto const size = *byte_size(infos[i].type, infos[i].dims);
    writer.write(i, 0, std::span(bytes).subspan(at, size));
    at += size;
  }
  writer.commit();
}

/// A model, the same with other bytes, and where a sender may listen.
struct two_models {
  two_models() {
    write(file, bytes_of(0));
    write(changed, bytes_of(1));
  }
  scratch const place;
  std::string const file = place.file("model.safetensors"), changed = place.file("changed.safetensors"),
                    socket = place.file("s");
};

boost::json::object report_of(ended const& result) {
  INFO(result.err);
  return boost::json::parse(result.out).as_object();
}

/// Three programs may start while one that was stopped is waited for.
sender_options patient_options() {
  return sender_options().silence_limit(std::chrono::seconds(60)).decide_limit(std::chrono::seconds(60));
}

/// A trainer, whose loop a thread of its own turns.
class trainer {
 public:
  trainer(std::string const& path, digest_choice digests)
      : memory_(bytes_of(0))
      , sender_(std::in_place, io_.get_executor(), path, patient_options().digests(digests))
      , loop_([this] { io_.run(); }) {}
  ~trainer() {
    sender_->close(asio::use_future).get();
    sender_.reset();
    work_.reset();
    loop_.join();
  }
  /// What it ended with. By value: an exception that crosses from thread to thread is let go of by both.
  std::error_code send(std::uint64_t version) {
    std::vector<tensor_view> views{{"up", dtype::bf16, {300, 700}, memory_.data()},
                                   {"down", dtype::f32, {70}, memory_.data() + 300 * 700 * 2}};
    auto const ended = std::make_shared<std::promise<std::error_code>>();
    auto result = ended->get_future();
    sender_->send_weights(version, views,
                          [ended](std::error_code error, send_report const&) { ended->set_value(error); });
    return result.get();
  }
  void wait_for(std::size_t receivers) {
    sender_->wait_for_receivers(receivers, std::chrono::seconds(60), asio::use_future).get();
  }

 private:
  std::vector<std::byte> memory_;
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  std::optional<sender> sender_;
  std::thread loop_;
};

} // namespace

TEST_CASE("verify compares checkpoints tensor by tensor, and says by its status whether they agree") {
  scratch const place;
  auto const one = place.file("one.safetensors"), same = place.file("same.safetensors"),
             other = place.file("other.safetensors"), reshaped = place.file("reshaped.safetensors");
  auto bytes = bytes_of(0);
  write(one, bytes);
  write(same, bytes);
  bytes.back() ^= std::byte{1};
  write(other, bytes);
  write(reshaped, bytes_of(0), {{"up", dtype::bf16, {700, 300}}, {"left", dtype::f32, {70}}});

  auto const alone = testing::run({"verify", one, "--json"});
  CHECK(alone.status == 0);
  auto const digest = report_of(alone).at("files").at(0).at("digest");
  CHECK(digest.as_string().size() == 32);

  auto const good = testing::run({"verify", one, same, "--json"});
  CHECK(good.status == 0);
  CHECK(report_of(good).at("agree") == true);
  CHECK(report_of(good).at("files").at(1).at("digest") == digest);

  auto const bad = testing::run({"verify", one, same, other, "--json"});
  CHECK(bad.status == 4);
  CHECK(bad.complaints().size() == 1);
  auto const report = report_of(bad);
  CHECK(report.at("agree") == false);
  REQUIRE(report.at("differences").as_array().size() == 1);
  CHECK(report.at("differences").at(0).as_string().find("tensor down has other bytes in ") !=
        std::string::npos);

  auto const words = testing::run({"verify", one, reshaped});
  CHECK(words.status == 4);
  CHECK(words.out.find("tensor down is not in ") != std::string::npos);
  CHECK(words.out.find("tensor up has another type or shape in ") != std::string::npos);
  CHECK(words.out.find("tensor left is only in ") != std::string::npos);

  CHECK(testing::run({"verify"}).status == 2);
  CHECK(testing::run({"verify", place.file("nothing.safetensors")}).status != 0);
}

TEST_CASE_FIXTURE(two_models, "verify shows what a sender sent last, and which receivers hold that") {
  {
    trainer sends(socket, digest_choice::tensors);
    auto const early = testing::run({"verify", "--socket", socket});
    CHECK(early.status == 3); // nothing was sent yet
    program first({"receive", "--socket", socket, "--name", "first", "--check", "--json"});
    sends.wait_for(1);
    CHECK_FALSE(sends.send(7));
    auto const good = testing::run({"verify", file, "--socket", socket, "--json"});
    CHECK(good.status == 0);
    auto const report = report_of(good);
    CHECK(report.at("agree") == true);
    CHECK(report.at("sender").at("version") == 7);
    CHECK(report.at("sender").at("updating").is_null());
    CHECK(report.at("sender").at("digest") == report.at("files").at(0).at("digest"));
    REQUIRE(report.at("receivers").as_array().size() == 1);
    CHECK(report.at("receivers").at(0).at("verdict") == "same");
    CHECK(report.at("receivers").at(0).at("digest") == report.at("sender").at("digest"));

    CHECK(testing::run({"verify", changed, "--socket", socket}).status == 4);

    // One that has nothing yet.
    program second({"receive", "--socket", socket, "--name", "second", "--json"});
    sends.wait_for(2);
    auto const behind = testing::run({"verify", "--socket", socket});
    CHECK(behind.status == 4);
    CHECK(behind.out.find("holds no version") != std::string::npos);
    CHECK(behind.out.find("same") != std::string::npos);
    CHECK(behind.out.find("the sender, last with digests") != std::string::npos);
    CHECK(behind.out.find("no receiver is connected") == std::string::npos);
    REQUIRE(behind.complaints().size() == 1);
    CHECK(behind.complaints()[0].find("1 of 2 receiver(s) do not hold what was sent last with digests") !=
          std::string::npos);
    CHECK_FALSE(sends.send(8));
    auto const again = testing::run({"verify", "--socket", socket, "--json"});
    CHECK(again.status == 0);
    first.signal(SIGINT);
    second.signal(SIGINT);
    // What they computed of their own memory is what was compared.
    auto const held = report_of(first.wait());
    second.wait();
    CHECK(held.at("versions").at(0).at("digest") == report.at("sender").at("digest"));
    CHECK(held.at("versions").at(0).at("checked") == true);
  }
  {
    trainer sends(socket, digest_choice::none);
    program refusing({"receive", "--socket", socket, "--check", "--json"});
    sends.wait_for(1);
    CHECK(sends.send(1) == make_error_code(errc::too_few_receivers));
    auto const end = refusing.wait();
    CHECK(end.status == 3);
    CHECK(end.err.find("demands digests") != std::string::npos);
    CHECK(testing::run({"verify", "--socket", socket}).status == 3);
  }
}

TEST_CASE("send --check says that versions were compared, with the digest that receivers compute") {
  scratch const place;
  auto const file = place.file("model.safetensors"), socket = place.file("s");
  write(file, bytes_of(0));
  program sender({"send", file, "--socket", socket, "--versions", "2", "--check", "--json"});
  program receiver({"receive", "--socket", socket, "--check", "--json"});
  auto const sent = report_of(sender.wait()), held = report_of(receiver.wait());
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(sent.at("versions").at(i).at("checked") == true);
    CHECK(sent.at("versions").at(i).at("digest") == held.at("versions").at(i).at("digest"));
    CHECK(sent.at("versions").at(i).at("stages").as_object().contains("digest"));
  }
  CHECK(testing::run({"verify", file, "--json"})
            .out.find(std::string(sent.at("versions").at(0).at("digest").as_string())) != std::string::npos);
}

TEST_CASE_FIXTURE(two_models, "verify says that no receiver is connected, which is no difference") {
  program sender({"send", file, "--socket", socket, "--check", "--hold"});
  CHECK(testing::run({"receive", "--socket", socket, "--versions", "1"}).status == 0);
  sender.wait_for("left: ");
  auto const alone = testing::run({"verify", file, "--socket", socket});
  CHECK(alone.status == 0);
  CHECK(alone.out.find("no receiver is connected\n") != std::string::npos);
  auto const other = testing::run({"verify", changed, "--socket", socket});
  CHECK(other.status == 4);
  CHECK(other.out.find("is not what the sender sent as version 1") != std::string::npos);
}

TEST_CASE("verify tells of an update that runs, and compares with what came before it") {
  scratch const place;
  auto const socket = place.file("s");
  trainer sends(socket, digest_choice::tensors);
  program slow({"receive", "--socket", socket, "--json"});
  program quick({"receive", "--socket", socket, "--json"});
  sends.wait_for(2);
  CHECK_FALSE(sends.send(7));
  slow.signal(SIGSTOP);
  auto sending = std::async(std::launch::async, [&] { return sends.send(8); });
  // The stopped one is waited for.
  program watching({"watch", "--socket", socket, "--json", "--interval", "0.01"});
  watching.wait_for_output("\"updating\":{\"version\":8");
  auto const between = testing::run({"verify", "--socket", socket, "--json"});
  auto const words = testing::run({"verify", "--socket", socket});
  slow.signal(SIGCONT);
  CHECK_FALSE(sending.get());
  CHECK(report_of(between).at("sender").at("updating") == 8);
  CHECK(report_of(between).at("sender").at("version") == 7);
  CHECK(words.status == 0);
  CHECK(words.out.find("version 8 is on its way\n") != std::string::npos);
  CHECK(words.complaints().empty());
  CHECK(testing::run({"verify", "--socket", socket}).status == 0);
}

TEST_CASE("send --hold gives its last version to who comes later, and is there for verify, until a signal") {
  scratch const place;
  auto const file = place.file("model.safetensors"), socket = place.file("s");
  write(file, bytes_of(0));
  for (int const signal : {SIGINT, SIGTERM}) {
    program sender({"send", file, "--socket", socket, "--versions", "2", "--check", "--hold", "--json"});
    auto const first = testing::run({"receive", "--socket", socket, "--versions", "2", "--json"});
    CHECK_MESSAGE(first.status == 0, first.err);
    sender.wait_for("holding version 2");
    program late({"receive", "--socket", socket, "--name", "late", "--json"});
    late.wait_for("version 2: ");
    sender.wait_for("delivered version 2");
    auto const looked = testing::run({"verify", "--socket", socket, "--json"});
    CHECK_MESSAGE(looked.status == 0, looked.err);
    CHECK(report_of(looked).at("sender").at("version") == 2);
    CHECK(report_of(looked).at("receivers").at(0).at("verdict") == "same");
    sender.signal(signal);
    auto const end = sender.wait(), held = late.wait();
    CHECK(end.status == 128 + signal);
    CHECK(held.status == 0);
    // Two that were sent, and one delivery.
    auto const versions = report_of(end).at("versions").as_array();
    REQUIRE(versions.size() == 3);
    CHECK(versions[2].at("version") == 2);
    CHECK(versions[2].at("digest") == versions[1].at("digest"));
    CHECK(versions[2].at("receivers").at(0).at("name").as_string().starts_with("late"));
    CHECK(versions[2].at("receivers").at(0).at("outcome") == "committed");
    CHECK(report_of(held).at("versions").at(0).at("digest") == versions[1].at("digest"));
    CHECK(report_of(first).at("versions").at(1).at("digest") == versions[1].at("digest"));
  }
}
